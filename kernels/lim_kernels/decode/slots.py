"""Lists of cache slots that attention reads, written on the device: of all tokens, of sets and the tokens since."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lim_kernels.ragged import load_extent

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
    """Copy a part of a request's row; the first part's program writes its end as well. Grid: (parts, requests)."""
    part, request = tl.program_id(0), tl.program_id(1)
    others = tl.arange(0, REQUESTS)
    counts = tl.load(lengths + others, mask=others < batch, other=-extra).to(tl.int32) + extra
    begin = tl.sum(tl.where(others < request, counts, 0), 0)
    count = tl.sum(tl.where(others == request, counts, 0), 0)
    if part == 0:
        tl.store(kv_indptr + request + 1, begin + count)
        if request == 0:
            tl.store(kv_indptr, 0)
    place = part * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + request).to(tl.int64)
    slots = tl.load(req_to_token + row * stride + place, mask=place < count, other=0)
    tl.store(kv_indices + begin.to(tl.int64) + place, slots.to(tl.int32), mask=place < count)


def write_slots(
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


@triton.jit(do_not_specialize=["batch"])
def extend_set_kernel(
    set_indptr,
    set_indices,
    set_lengths,
    req_to_token,
    rows,
    lengths,
    kv_indptr,
    kv_indices,
    batch,
    stride,
    REQUESTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copy a part of a set, then the tokens since; the first part's program writes its end. Grid: (parts, requests)."""
    part, request = tl.program_id(0), tl.program_id(1)
    others = tl.arange(0, REQUESTS)
    real = others < batch
    since = tl.load(lengths + others, mask=real, other=0) - tl.load(set_lengths + others, mask=real, other=0)
    since = tl.maximum(since, 0)
    since_before = tl.sum(tl.where(others < request, since, 0), 0).to(tl.int32)
    own = tl.sum(tl.where(others == request, since, 0), 0).to(tl.int32)
    set_begin, chosen = load_extent(set_indptr, request)
    begin = set_begin + since_before
    if part == 0:
        tl.store(kv_indptr + request + 1, begin + chosen + own)
        if request == 0:
            tl.store(kv_indptr, 0)
    place = part * BLOCK + tl.arange(0, BLOCK)
    kept = tl.load(set_indices + set_begin + place, mask=place < chosen, other=0)
    row = tl.load(rows + request).to(tl.int64)
    position = tl.load(set_lengths + request) + place - chosen
    is_later = (place >= chosen) & (place < chosen + own)
    later = tl.load(req_to_token + row * stride + position, mask=is_later, other=0)
    slots = tl.where(place < chosen, kept, later).to(tl.int32)
    tl.store(kv_indices + begin + place, slots, mask=place < chosen + own)


def extend_sets(
    sets: tuple[Tensor, Tensor, Tensor],
    req_to_token: Tensor,
    rows: Tensor,
    lengths: Tensor,
    most: int,
    kv_indptr: Tensor,
    kv_indices: Tensor,
) -> None:
    """Fill ``kv_indptr[: B + 1]`` and ``kv_indices`` with every request's set and its tokens since the set was chosen.

    Nothing is allocated, and lengths are read on the device only: a captured step runs it.

    Args:
        sets: ends [>= B + 1] int32 and slots int32 of the sets, and [>= B] the requests' lengths when they were chosen.
        req_to_token: [rows, tokens] int32, slots by position; the last dimension contiguous.
        rows: [B] int32 or int64, the requests' rows.
        lengths: [B] int32 or int64, tokens of the requests now, none fewer than then.
        most: slots of a request that may be listed, at most.
        kv_indptr: [>= B + 1] int32, written.
        kv_indices: [>= B * most] int32, written.
    """
    batch = len(rows)
    extend_set_kernel[(triton.cdiv(most, BLOCK), batch)](
        *sets,
        req_to_token,
        rows,
        lengths,
        kv_indptr,
        kv_indices,
        batch,
        req_to_token.stride(0),
        REQUESTS=triton.next_power_of_2(max(batch, 2)),
        BLOCK=BLOCK,
    )
