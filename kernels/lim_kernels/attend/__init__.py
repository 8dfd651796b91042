"""Attention of the last tokens of requests over a paged cache, page size 1; a SELECT layer's scores on the way."""
