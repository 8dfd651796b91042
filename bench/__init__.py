"""Measurements: `python -m bench.…` from the root of a checkout; results in `bench/results`."""
