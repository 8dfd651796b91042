"""Attention of one query token per request over a paged cache, page size 1; a SELECT layer's scores on the way."""
