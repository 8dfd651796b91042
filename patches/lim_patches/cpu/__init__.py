"""Hooks that only the CPU host registers: SGLang without a GPU."""
