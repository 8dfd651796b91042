"""The complete ranking: every head's first ``m`` candidates, for requests whose shortlists ended too early.

Slower than the shortlists and right for any scores, however many are tied or shared between heads.
"""

import triton
import triton.language as tl

from lim_kernels.chain import await_previous
from lim_kernels.ragged import load_extent
from lim_kernels.select.emit import NUMBERS, write_set
from lim_kernels.select.radix import kth_largest, kth_smallest_rank, load_digits


@triton.jit(do_not_specialize=NUMBERS)
def full_rank_kernel(
    scores,
    ranks,
    ranked,
    unfinished,
    kv_indptr,
    first_request,
    scores_stride_b,
    scores_stride_h,
    ranks_stride_b,
    ranked_stride_b,
    ranked_stride_h,
    selected,
    sinks,
    recent,
    rank_heads,
    first_head,
    SELECTED_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Rank one head's first ``m`` candidates, for flagged requests; each lowers its token's unified rank.

    Grid: (heads, requests).

    ``ranked`` is scratch: [requests, H, m] int64.
    """
    await_previous(CHAINED)
    head, row = tl.program_id(0), tl.program_id(1)
    _, length = load_extent(kv_indptr, first_request + row)
    if tl.load(unfinished + row) == 0:
        return
    scores_row = scores + row.to(tl.int64) * scores_stride_b + head.to(tl.int64) * scores_stride_h
    scratch = ranked + row.to(tl.int64) * ranked_stride_b + head.to(tl.int64) * ranked_stride_h
    end = length - recent
    threshold, ties = kth_largest(scores_row, sinks, end, selected, 0, False, 4, BLOCK)
    taken = tl.zeros((), tl.int32)
    tied = tl.zeros((), tl.int32)
    for tile in range(sinks, end, BLOCK):
        position = tile + tl.arange(0, BLOCK)  # [BLOCK]
        digits, valid = load_digits(scores_row, position, position < end, 0, False)
        tie = valid & (digits == threshold)
        order = tied + tl.cumsum(tie.to(tl.int32), 0)
        take = valid & ((digits > threshold) | (tie & (order <= ties)))
        index = taken + tl.cumsum(take.to(tl.int32), 0) - 1
        falling = (digits ^ 0xFFFFFFFF).to(tl.int64) << 31  # higher scores sort first, then lower positions
        tl.store(scratch + index, falling | position.to(tl.int64), mask=take)
        tied += tl.sum(tie.to(tl.int32), 0)
        taken += tl.sum(take.to(tl.int32), 0)
    tl.debug_barrier()  # the program reads back what its other threads wrote
    head_rank = tl.arange(0, SELECTED_PAD)  # [SELECTED_PAD]
    found = tl.load(scratch + head_rank, mask=head_rank < selected, other=0x7FFFFFFFFFFFFFFF)
    position = tl.sort(found) & 0x7FFFFFFF
    tl.atomic_min(
        ranks + row.to(tl.int64) * ranks_stride_b + position,
        head_rank * rank_heads + first_head + head,
        mask=head_rank < selected,
        sem="relaxed",
    )


@triton.jit(do_not_specialize=NUMBERS)
def full_emit_kernel(
    ranks,
    unfinished,
    kv_indptr,
    kv_indices,
    sparse_indptr,
    sparse_indices,
    first_request,
    ranks_stride_b,
    selected,
    sinks,
    recent,
    rank_limit,
    RANK_PASSES: tl.constexpr,
    BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Write the set's cache slots in ascending position order, for flagged requests. Grid: (requests,)."""
    await_previous(CHAINED)
    row = tl.program_id(0)
    if tl.load(unfinished + row) == 0:
        return
    begin, length = load_extent(kv_indptr, first_request + row)
    ranks_row = ranks + row.to(tl.int64) * ranks_stride_b
    end = length - recent
    last_rank = kth_smallest_rank(ranks_row, sinks, end, selected, rank_limit, RANK_PASSES, BLOCK)
    out = sparse_indices + tl.load(sparse_indptr + first_request + row)
    none = tl.zeros((), tl.int32)
    write_set(ranks_row, kv_indices + begin, out, 0, length, none, length, sinks, end, last_rank, True, BLOCK)
