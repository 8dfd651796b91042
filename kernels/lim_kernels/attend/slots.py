"""The cache slots of requests' tokens as one list, which attention reads, written on the device."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048  # slots that a program copies


@triton.jit(do_not_specialize=["batch", "extra"])
def slots_kernel(
    req_to_token,
    rows,
    lengths,
    kv_indptr,
    kv_indices,
    batch,
    extra,
    stride,
    REQUESTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copy a block of a request's row; the first block's program writes its end as well. Grid: (blocks, requests)."""
    block, request = tl.program_id(0), tl.program_id(1)
    others = tl.arange(0, REQUESTS)  # [REQUESTS]
    counts = tl.load(lengths + others, mask=others < batch, other=-extra).to(tl.int32) + extra
    begin = tl.sum(tl.where(others < request, counts, 0), 0)
    count = tl.sum(tl.where(others == request, counts, 0), 0)
    if block == 0:
        tl.store(kv_indptr + request + 1, begin + count)
        if request == 0:
            tl.store(kv_indptr, 0)
    position = block * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    row = tl.load(rows + request).to(tl.int64)
    slots = tl.load(req_to_token + row * stride + position, mask=position < count, other=0)
    tl.store(kv_indices + begin.to(tl.int64) + position, slots.to(tl.int32), mask=position < count)


def list_slots(
    req_to_token: Tensor, rows: Tensor, lengths: Tensor, extra: int, kv_indptr: Tensor, kv_indices: Tensor
) -> None:
    """Fill ``kv_indptr[: B + 1]`` and ``kv_indices`` with the slots of ``lengths + extra`` tokens of every request.

    Nothing is allocated, and lengths are read on the device only: a captured step runs it.

    Args:
        req_to_token: [rows, tokens] int32, slots by position; the last dimension contiguous.
        rows: [B] int32 or int64, the requests' rows.
        lengths: [B] int32 or int64, at least ``-extra``.
        extra: tokens behind each request's ``lengths``.
        kv_indptr: [>= B + 1] int32, written.
        kv_indices: [>= tokens of all requests] int32, written.

    Raises:
        ValueError: the ends are not int32 or too few.
    """
    batch = len(rows)
    if kv_indptr.dtype != torch.int32 or kv_indices.dtype != torch.int32 or len(kv_indptr) <= batch:
        raise ValueError(
            f"kv_indptr of {len(kv_indptr)} {kv_indptr.dtype} and kv_indices of {kv_indices.dtype} for {batch} "
            f"requests: expected torch.int32, and {batch + 1} ends at least"
        )
    slots_kernel[(triton.cdiv(req_to_token.shape[1], BLOCK), batch)](
        req_to_token,
        rows,
        lengths,
        kv_indptr,
        kv_indices,
        batch,
        extra,
        req_to_token.stride(0),
        REQUESTS=triton.next_power_of_2(max(batch, 2)),
        BLOCK=BLOCK,
    )
