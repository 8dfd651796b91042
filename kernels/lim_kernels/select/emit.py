"""The token set of LessIsMore on the device; ``reference`` is the definition, ``launch`` the caller.

A SELECT layer's attention writes every query head's scores with ``store_scores``. ``shortlist`` ranks each head's best
few hundred candidates and lowers their tokens' unified ranks. ``emit_kernel`` reads the merged list from its start;
where it holds ``m`` tokens before any shortlist ends, the set is exact and its slots are written. Otherwise the request
is flagged, and ``full_ranking`` ranks all ``m`` candidates of each head. A request with at most ``K`` tokens is copied.
Nothing depends on the order in which programs run. Where heads are spread over devices, ``exchange`` comes before
``emit_kernel``.
"""

import triton
import triton.language as tl

from lim_kernels.attend.scores import UNRANKED
from lim_kernels.chain import await_previous
from lim_kernels.ragged import load_extent
from lim_kernels.select.radix import kth_smallest_rank

# Plain numbers that change with the configuration: no variant of a kernel is compiled for each of their values.
NUMBERS = [
    "batch",
    "budget",
    "devices",
    "emit_splits",
    "first_head",
    "first_request",
    "num_heads",
    "rank_heads",
    "rank_limit",
    "recent",
    "rows",
    "selected",
    "sinks",
]


@triton.jit(do_not_specialize=NUMBERS)
def sparse_indptr_kernel(kv_indptr, sparse_indptr, batch, budget, BLOCK: tl.constexpr):
    """Write the ends of the sets: ``sparse_indptr[b + 1] - sparse_indptr[b] = min(n_b, K)``; one program."""
    row = tl.arange(0, BLOCK)  # [BLOCK]
    inside = row < batch
    begin = tl.load(kv_indptr + row, mask=inside, other=0)
    end = tl.load(kv_indptr + row + 1, mask=inside, other=0)
    ends = tl.cumsum(tl.minimum(end - begin, budget), 0)
    tl.store(sparse_indptr + row + 1, ends, mask=inside)
    tl.store(sparse_indptr + row, 0, mask=row == 0)


@triton.jit
def load_merged(
    ranks_row, shortlists, start, limit, num_heads, rank_heads, first_head, MOST: tl.constexpr, BLOCK: tl.constexpr
):
    """A tile of the merged list of this device's heads, read head by head of every rank.

    Returns each entry's place in the list, its token's position and unified rank, and whether the token stands nowhere
    earlier in the list; all [BLOCK].
    """
    place = start + tl.arange(0, BLOCK)  # [BLOCK], the head's own rank * H + head
    head_rank = place // num_heads
    head = place - head_rank * num_heads
    inside = place < limit
    position = tl.load(shortlists + head * MOST + head_rank, mask=inside, other=0)
    rank = tl.load(ranks_row + position, mask=inside, other=-1)
    return place, position, rank, inside & (rank == head_rank * rank_heads + first_head + head)


@triton.jit
def merged_length(counts, num_heads, MOST: tl.constexpr, HEADS: tl.constexpr):
    """How long the merged list is: to where the first shortlist ends."""
    head = tl.arange(0, HEADS)
    return tl.min(tl.load(counts + head, mask=head < num_heads, other=MOST), 0) * num_heads


@triton.jit
def _last_rank(
    ranks_row,
    shortlists,
    counts,
    selected,
    num_heads,
    first,
    MOST: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The ``m``-th rank of the merged list, or -1 where a shortlist ends before it.

    Also how many of its first ``m`` tokens lie before position ``first``.
    """
    limit = merged_length(counts, num_heads, MOST, HEADS)
    last = tl.full((), -1, tl.int32)
    seen = tl.zeros((), tl.int32)
    before = tl.zeros([BLOCK], tl.int32)
    start = tl.zeros((), tl.int32)
    while (last < 0) & (start < limit):
        place, position, _rank, is_first = load_merged(
            ranks_row, shortlists, start, limit, num_heads, num_heads, 0, MOST, BLOCK
        )
        running = seen + tl.cumsum(is_first.to(tl.int32), 0)
        before += (is_first & (running <= selected) & (position < first)).to(tl.int32)
        seen += tl.sum(is_first.to(tl.int32), 0)
        if seen >= selected:
            last = tl.min(tl.where(running >= selected, place, UNRANKED), 0)
        start += BLOCK
    return last, tl.sum(before, 0)


@triton.jit
def load_offer(gathered, tile, row, rows, devices, selected, BLOCK: tl.constexpr):
    """A tile of what all devices offer for a request: ranks, positions, which of them there are.

    ``gathered``: [devices, rows, m, 2] int32.
    """
    index = tile + tl.arange(0, BLOCK)  # [BLOCK], device * m + index
    inside = index < devices * selected
    device = index // selected
    pair = gathered + 2 * ((device * rows + row) * selected + index - device * selected)
    return tl.load(pair, mask=inside, other=UNRANKED), tl.load(pair + 1, mask=inside, other=0), inside


@triton.jit
def _last_joined_rank(
    gathered,
    joined,
    row,
    rows,
    devices,
    selected,
    rank_limit,
    first,
    RANK_PASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The ``m``-th smallest rank of what all devices offered, and how many of the first ``m`` lie before ``first``."""
    joined_row = joined + row.to(tl.int64) * devices * selected
    last = kth_smallest_rank(joined_row, 0, devices * selected, selected, rank_limit, RANK_PASSES, BLOCK)
    before = tl.zeros([BLOCK], tl.int32)
    for tile in range(0, devices * selected, BLOCK):
        _rank, position, inside = load_offer(gathered, tile, row, rows, devices, selected, BLOCK)
        rank = tl.load(joined_row + tile + tl.arange(0, BLOCK), mask=inside, other=UNRANKED)
        before += ((rank <= last) & (position < first)).to(tl.int32)
    return last, tl.sum(before, 0)


@triton.jit(do_not_specialize=NUMBERS)
def emit_kernel(
    ranks,
    shortlists,
    counts,
    unfinished,
    gathered,
    joined,
    kv_indptr,
    kv_indices,
    sparse_indptr,
    sparse_indices,
    first_request,
    emit_splits,
    rows,
    devices,
    ranks_stride_b,
    budget,
    selected,
    sinks,
    recent,
    num_heads,
    rank_limit,
    SELECTS: tl.constexpr,
    EXCHANGED: tl.constexpr,
    RANK_PASSES: tl.constexpr,
    MOST: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Write the set's cache slots in ascending position order, or a flag in ``unfinished``. Grid: (splits, requests).

    Every split of a request finds the same last rank, then writes its own stretch of positions. ``EXCHANGED``: it comes
    from what all devices offered, and nothing is flagged here.
    """
    await_previous(CHAINED)
    split, row = tl.program_id(0), tl.program_id(1)
    begin, length = load_extent(kv_indptr, first_request + row)
    source = kv_indices + begin
    out = sparse_indices + tl.load(sparse_indptr + first_request + row)
    ranks_row = ranks + row.to(tl.int64) * ranks_stride_b
    stretch = tl.cdiv(tl.cdiv(length, emit_splits), BLOCK) * BLOCK
    first, stop = split * stretch, tl.minimum((split + 1) * stretch, length)
    if length <= budget:
        for tile in range(first, stop, BLOCK):
            position = tile + tl.arange(0, BLOCK)  # [BLOCK]
            tl.store(out + position, tl.load(source + position, mask=position < stop, other=0), mask=position < stop)
        if SELECTS and not EXCHANGED and split == 0:
            tl.store(unfinished + row, 0)
        return
    end = length - recent
    last_rank = tl.full((), -1, tl.int32)
    taken = tl.minimum(first, sinks) + tl.maximum(first - end, 0)
    if EXCHANGED:
        last_rank, selected_before = _last_joined_rank(
            gathered, joined, row, rows, devices, selected, rank_limit, first, RANK_PASSES, BLOCK
        )
        taken += selected_before
    elif SELECTS:
        lists = row.to(tl.int64) * num_heads
        last_rank, selected_before = _last_rank(
            ranks_row, shortlists + lists * MOST, counts + lists, selected, num_heads, first, MOST, HEADS, BLOCK
        )
        taken += selected_before
        if split == 0:
            tl.store(unfinished + row, (last_rank < 0).to(tl.int32))
        if last_rank < 0:
            return
    write_set(ranks_row, source, out, first, stop, taken, length, sinks, end, last_rank, SELECTS, BLOCK)


@triton.jit
def _in_set(ranks_row, position, length, sinks, end, last_rank, SELECTS: tl.constexpr):
    """Sinks, the recency window, and candidates whose rank is at most ``last_rank``."""
    candidate = (position >= sinks) & (position < end)
    take = (position < length) & (candidate == 0)
    if SELECTS:
        rank = tl.load(ranks_row + position, mask=candidate, other=UNRANKED)
        take = take | (candidate & (rank <= last_rank))
    return take


@triton.jit
def write_set(
    ranks_row,
    source,
    out,
    first,
    stop,
    taken,
    length,
    sinks,
    end,
    last_rank,
    SELECTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the slots of the set's positions in ``first .. stop - 1``; ``taken`` slots come before them."""
    for tile in range(first, stop, BLOCK):
        position = tile + tl.arange(0, BLOCK)  # [BLOCK]
        take = _in_set(ranks_row, position, length, sinks, end, last_rank, SELECTS) & (position < stop)
        index = taken + tl.cumsum(take.to(tl.int32), 0) - 1
        tl.store(out + index, tl.load(source + position, mask=take, other=0), mask=take)
        taken += tl.sum(take.to(tl.int32), 0)
