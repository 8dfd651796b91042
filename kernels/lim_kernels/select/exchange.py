"""The kernels around an exchange between devices; ``shard`` says what is exchanged and why the set is exact.

``offer_kernel`` reads the merged list of this device's heads from its start; where a shortlist ends too early the
request is flagged, and after the complete ranking ``full_offer_kernel`` offers. Once gathered, ``join_kernel`` keeps of
every position the smallest key, and ``kernel.emit_kernel`` writes the slots.
"""

import triton
import triton.language as tl

from lim_kernels.attend.scores import UNRANKED
from lim_kernels.chain import await_previous
from lim_kernels.ragged import load_extent
from lim_kernels.select.emit import NUMBERS, load_offer
from lim_kernels.select.radix import kth_smallest_key


@triton.jit(do_not_specialize=NUMBERS)
def offer_kernel(
    keys,
    shortlists,
    counts,
    unfinished,
    offered,
    kv_indptr,
    first_request,
    keys_stride_b,
    budget,
    selected,
    sinks,
    recent,
    num_heads,
    key_heads,
    first_head,
    MOST: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """The ``m`` smallest keys of this device's heads with their positions, or a flag. Grid: (requests,)."""
    await_previous(CHAINED)
    row = tl.program_id(0)
    _, length = load_extent(kv_indptr, first_request + row)
    if length <= budget:
        tl.store(unfinished + row, 0)
        return
    own = keys + row.to(tl.int64) * keys_stride_b
    lists = row.to(tl.int64) * num_heads
    out = offered + row.to(tl.int64) * 2 * selected
    head = tl.arange(0, HEADS)
    limit = tl.min(tl.load(counts + lists + head, mask=head < num_heads, other=MOST), 0) * num_heads
    seen = tl.zeros((), tl.int32)
    start = tl.zeros((), tl.int32)
    while (seen < selected) & (start < limit):
        place = start + tl.arange(0, BLOCK)  # rank * this device's heads + head
        rank = place // num_heads
        head_of = place - rank * num_heads
        inside = place < limit
        position = tl.load(shortlists + (lists + head_of) * MOST + rank, mask=inside, other=0)
        key = tl.load(own + position, mask=inside, other=-1)
        is_first = inside & (key == rank * key_heads + first_head + head_of)  # no head here ranks this token earlier
        running = seen + tl.cumsum(is_first.to(tl.int32), 0)
        take = is_first & (running <= selected)
        tl.store(out + 2 * (running - 1), key, mask=take)
        tl.store(out + 2 * (running - 1) + 1, position, mask=take)
        seen += tl.sum(is_first.to(tl.int32), 0)
        start += BLOCK
    tl.store(unfinished + row, (seen < selected).to(tl.int32))


@triton.jit(do_not_specialize=NUMBERS)
def full_offer_kernel(
    keys,
    unfinished,
    offered,
    kv_indptr,
    first_request,
    keys_stride_b,
    selected,
    sinks,
    recent,
    key_limit,
    KEY_PASSES: tl.constexpr,
    BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """The same for flagged requests, whose keys are complete. Grid: (requests,)."""
    await_previous(CHAINED)
    row = tl.program_id(0)
    if tl.load(unfinished + row) == 0:
        return
    _, length = load_extent(kv_indptr, first_request + row)
    own = keys + row.to(tl.int64) * keys_stride_b
    out = offered + row.to(tl.int64) * 2 * selected
    end = length - recent
    last_key = kth_smallest_key(own, sinks, end, selected, key_limit, KEY_PASSES, BLOCK)
    taken = tl.zeros((), tl.int32)
    for tile in range(sinks, end, BLOCK):
        position = tile + tl.arange(0, BLOCK)
        key = tl.load(own + position, mask=position < end, other=UNRANKED)
        take = key <= last_key
        index = taken + tl.cumsum(take.to(tl.int32), 0) - 1
        tl.store(out + 2 * index, key, mask=take)
        tl.store(out + 2 * index + 1, position, mask=take)
        taken += tl.sum(take.to(tl.int32), 0)


@triton.jit(do_not_specialize=NUMBERS)
def join_kernel(
    keys,
    gathered,
    joined,
    kv_indptr,
    first_request,
    rows,
    devices,
    keys_stride_b,
    budget,
    selected,
    sinks,
    recent,
    BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Lower every offered position's key to the smallest of all devices; the others count no more. Grid: (requests,).

    ``gathered``: [devices, rows, m, 2] int32; ``joined``: [rows, devices * m] int32, ``UNRANKED`` for what counts not.
    """
    await_previous(CHAINED)
    row = tl.program_id(0)
    _, length = load_extent(kv_indptr, first_request + row)
    if length <= budget:
        return
    own = keys + row.to(tl.int64) * keys_stride_b
    out = joined + row.to(tl.int64) * devices * selected
    for tile in range(0, devices * selected, BLOCK):
        key, position, inside = load_offer(gathered, tile, row, rows, devices, selected, BLOCK)
        tl.atomic_min(own + position, key, mask=inside, sem="relaxed")
    tl.debug_barrier()  # the program reads back what its other threads wrote
    for tile in range(0, devices * selected, BLOCK):
        key, position, inside = load_offer(gathered, tile, row, rows, devices, selected, BLOCK)
        smallest = tl.load(own + position, mask=inside, other=-1, cache_modifier=".cg")
        tl.store(out + tile + tl.arange(0, BLOCK), tl.where(key == smallest, key, UNRANKED), mask=inside)
