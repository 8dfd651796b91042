"""The kernels around an exchange between devices; ``shard`` says what is exchanged and why the set is exact.

``offer_kernel`` reads the merged list of this device's heads from its start; where a shortlist ends too early the
request is flagged, and after the complete ranking ``full_offer_kernel`` offers. Once gathered, ``join_kernel`` keeps of
every position the smallest rank, and ``emit.emit_kernel`` writes the slots.
"""

import triton
import triton.language as tl

from lim_kernels.attend.scores import UNRANKED
from lim_kernels.chain import await_previous
from lim_kernels.ragged import load_extent
from lim_kernels.select.emit import NUMBERS, load_merged, load_offer, merged_length
from lim_kernels.select.radix import kth_smallest_rank


@triton.jit(do_not_specialize=NUMBERS)
def offer_kernel(
    ranks,
    shortlists,
    counts,
    unfinished,
    offered,
    kv_indptr,
    first_request,
    ranks_stride_b,
    budget,
    selected,
    sinks,
    recent,
    num_heads,
    rank_heads,
    first_head,
    MOST: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Offer the ``m`` smallest ranks of this device's heads with their positions, or set a flag. Grid: (requests,)."""
    await_previous(CHAINED)
    row = tl.program_id(0)
    _, length = load_extent(kv_indptr, first_request + row)
    if length <= budget:
        tl.store(unfinished + row, 0)
        return
    ranks_row = ranks + row.to(tl.int64) * ranks_stride_b
    lists = row.to(tl.int64) * num_heads
    out = offered + row.to(tl.int64) * 2 * selected
    limit = merged_length(counts + lists, num_heads, MOST, HEADS)
    seen = tl.zeros((), tl.int32)
    start = tl.zeros((), tl.int32)
    while (seen < selected) & (start < limit):
        _place, position, rank, is_first = load_merged(
            ranks_row, shortlists + lists * MOST, start, limit, num_heads, rank_heads, first_head, MOST, BLOCK
        )
        running = seen + tl.cumsum(is_first.to(tl.int32), 0)
        take = is_first & (running <= selected)
        tl.store(out + 2 * (running - 1), rank, mask=take)
        tl.store(out + 2 * (running - 1) + 1, position, mask=take)
        seen += tl.sum(is_first.to(tl.int32), 0)
        start += BLOCK
    tl.store(unfinished + row, (seen < selected).to(tl.int32))


@triton.jit(do_not_specialize=NUMBERS)
def full_offer_kernel(
    ranks,
    unfinished,
    offered,
    kv_indptr,
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
    """Offer the same for flagged requests, whose ranks are complete. Grid: (requests,)."""
    await_previous(CHAINED)
    row = tl.program_id(0)
    if tl.load(unfinished + row) == 0:
        return
    _, length = load_extent(kv_indptr, first_request + row)
    ranks_row = ranks + row.to(tl.int64) * ranks_stride_b
    out = offered + row.to(tl.int64) * 2 * selected
    end = length - recent
    last_rank = kth_smallest_rank(ranks_row, sinks, end, selected, rank_limit, RANK_PASSES, BLOCK)
    taken = tl.zeros((), tl.int32)
    for tile in range(sinks, end, BLOCK):
        position = tile + tl.arange(0, BLOCK)  # [BLOCK]
        rank = tl.load(ranks_row + position, mask=position < end, other=UNRANKED)
        take = rank <= last_rank
        index = taken + tl.cumsum(take.to(tl.int32), 0) - 1
        tl.store(out + 2 * index, rank, mask=take)
        tl.store(out + 2 * index + 1, position, mask=take)
        taken += tl.sum(take.to(tl.int32), 0)


@triton.jit(do_not_specialize=NUMBERS)
def join_kernel(
    ranks,
    gathered,
    joined,
    kv_indptr,
    first_request,
    rows,
    devices,
    ranks_stride_b,
    budget,
    selected,
    sinks,
    recent,
    BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Lower every offered position's rank to the smallest of all devices; the others count no more. Grid: (requests,).

    ``gathered``: [devices, rows, m, 2] int32; ``joined``: [rows, devices * m] int32, ``UNRANKED`` for what counts not.
    """
    await_previous(CHAINED)
    row = tl.program_id(0)
    _, length = load_extent(kv_indptr, first_request + row)
    if length <= budget:
        return
    ranks_row = ranks + row.to(tl.int64) * ranks_stride_b
    out = joined + row.to(tl.int64) * devices * selected
    for tile in range(0, devices * selected, BLOCK):
        rank, position, inside = load_offer(gathered, tile, row, rows, devices, selected, BLOCK)
        tl.atomic_min(ranks_row + position, rank, mask=inside, sem="relaxed")
    tl.debug_barrier()  # the program reads back what its other threads wrote
    for tile in range(0, devices * selected, BLOCK):
        rank, position, inside = load_offer(gathered, tile, row, rows, devices, selected, BLOCK)
        smallest = tl.load(ranks_row + position, mask=inside, other=-1, cache_modifier=".cg")
        tl.store(out + tile + tl.arange(0, BLOCK), tl.where(rank == smallest, rank, UNRANKED), mask=inside)
