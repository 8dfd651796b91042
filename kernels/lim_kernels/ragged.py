"""Requests of several lengths in one list of cache slots: ``kv_indptr[b]`` is where request ``b`` begins."""

import triton
import triton.language as tl


@triton.jit
def load_extent(kv_indptr, request):
    """Where the request's slots begin in the list, and how many they are: its tokens."""
    begin = tl.load(kv_indptr + request)
    return begin, tl.load(kv_indptr + request + 1) - begin
