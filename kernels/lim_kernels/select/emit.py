"""The token set of LessIsMore on the device; ``reference`` is the definition, ``launch`` the caller.

A SELECT layer's attention writes every query head's scores with ``store_scores``. ``shortlist`` ranks each head's best
few hundred candidates and lowers their tokens' unified keys. ``emit_kernel`` reads the merged list from its start;
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
from lim_kernels.select.radix import kth_smallest_key

# Plain numbers that change with the configuration: no variant of a kernel is compiled for each of their values.
NUMBERS = [
    "batch",
    "budget",
    "devices",
    "first_head",
    "first_request",
    "key_heads",
    "key_limit",
    "num_heads",
    "num_splits",
    "recent",
    "rows",
    "selected",
    "sinks",
]


@triton.jit(do_not_specialize=NUMBERS)
def sparse_indptr_kernel(kv_indptr, sparse_indptr, batch, budget, BLOCK: tl.constexpr):
    """``sparse_indptr[b + 1] - sparse_indptr[b] = min(n_b, K)``; one program."""
    row = tl.arange(0, BLOCK)
    inside = row < batch
    begin = tl.load(kv_indptr + row, mask=inside, other=0)
    end = tl.load(kv_indptr + row + 1, mask=inside, other=0)
    ends = tl.cumsum(tl.minimum(end - begin, budget), 0)
    tl.store(sparse_indptr + row + 1, ends, mask=inside)
    tl.store(sparse_indptr + row, 0, mask=row == 0)


@triton.jit
def _last_key(
    own_keys,
    shortlist,
    counts,
    selected,
    num_heads,
    first,
    MOST: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The ``m``-th key of the merged list, or -1 where a shortlist ends before it.

    Also how many of its first ``m`` tokens lie before position ``first``.
    """
    head = tl.arange(0, HEADS)
    complete = tl.min(tl.load(counts + head, mask=head < num_heads, other=MOST), 0)
    limit = complete * num_heads
    last = tl.full((), -1, tl.int32)
    seen = tl.zeros((), tl.int32)
    before = tl.zeros([BLOCK], tl.int32)
    start = tl.zeros((), tl.int32)
    while (last < 0) & (start < limit):
        place = start + tl.arange(0, BLOCK)  # rank * H + head
        rank = place // num_heads
        inside = place < limit
        position = tl.load(shortlist + (place - rank * num_heads) * MOST + rank, mask=inside, other=0)
        key = tl.load(own_keys + position, mask=inside, other=-1)
        is_first = (inside & (key == place)).to(tl.int32)  # no head ranks this token earlier
        running = seen + tl.cumsum(is_first, 0)
        before += ((is_first > 0) & (running <= selected) & (position < first)).to(tl.int32)
        seen += tl.sum(is_first, 0)
        if seen >= selected:
            last = tl.min(tl.where(running >= selected, place, UNRANKED), 0)
        start += BLOCK
    return last, tl.sum(before, 0)


@triton.jit
def load_offer(gathered, tile, row, rows, devices, selected, BLOCK: tl.constexpr):
    """A tile of what all devices offer for a request: keys, positions, which of them there are.

    ``gathered``: [devices, rows, m, 2] int32.
    """
    place = tile + tl.arange(0, BLOCK)  # device * m + index
    inside = place < devices * selected
    device = place // selected
    pair = gathered + 2 * ((device * rows + row) * selected + place - device * selected)
    return tl.load(pair, mask=inside, other=UNRANKED), tl.load(pair + 1, mask=inside, other=0), inside


@triton.jit
def _last_joined_key(
    gathered,
    joined,
    row,
    rows,
    devices,
    selected,
    key_limit,
    first,
    KEY_PASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The ``m``-th smallest key of what all devices offered, and how many of the first ``m`` lie before ``first``."""
    own = joined + row.to(tl.int64) * devices * selected
    last = kth_smallest_key(own, 0, devices * selected, selected, key_limit, KEY_PASSES, BLOCK)
    before = tl.zeros([BLOCK], tl.int32)
    for tile in range(0, devices * selected, BLOCK):
        _key, position, inside = load_offer(gathered, tile, row, rows, devices, selected, BLOCK)
        key = tl.load(own + tile + tl.arange(0, BLOCK), mask=inside, other=UNRANKED)
        before += ((key <= last) & (position < first)).to(tl.int32)
    return last, tl.sum(before, 0)


@triton.jit(do_not_specialize=NUMBERS)
def emit_kernel(
    keys,
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
    num_splits,
    rows,
    devices,
    keys_stride_b,
    budget,
    selected,
    sinks,
    recent,
    num_heads,
    key_limit,
    SELECTS: tl.constexpr,
    EXCHANGED: tl.constexpr,
    KEY_PASSES: tl.constexpr,
    MOST: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """The set's cache slots in ascending position order, or a flag in ``unfinished``. Grid: (splits, requests).

    Every split of a request finds the same last key, then writes its own stretch of positions. ``EXCHANGED``: it comes
    from what all devices offered, and nothing is flagged here.
    """
    await_previous(CHAINED)
    split, row = tl.program_id(0), tl.program_id(1)
    begin, length = load_extent(kv_indptr, first_request + row)
    source = kv_indices + begin
    out = sparse_indices + tl.load(sparse_indptr + first_request + row)
    own = keys + row.to(tl.int64) * keys_stride_b
    stretch = tl.cdiv(tl.cdiv(length, num_splits), BLOCK) * BLOCK
    first, stop = split * stretch, tl.minimum((split + 1) * stretch, length)
    if length <= budget:
        for tile in range(first, stop, BLOCK):
            position = tile + tl.arange(0, BLOCK)
            tl.store(out + position, tl.load(source + position, mask=position < stop, other=0), mask=position < stop)
        if SELECTS and not EXCHANGED and split == 0:
            tl.store(unfinished + row, 0)
        return
    end = length - recent
    last_key = tl.full((), -1, tl.int32)
    taken = tl.minimum(first, sinks) + tl.maximum(first - end, 0)
    if EXCHANGED:
        last_key, selected_before = _last_joined_key(
            gathered, joined, row, rows, devices, selected, key_limit, first, KEY_PASSES, BLOCK
        )
        taken += selected_before
    elif SELECTS:
        lists = row.to(tl.int64) * num_heads
        last_key, selected_before = _last_key(
            own, shortlists + lists * MOST, counts + lists, selected, num_heads, first, MOST, HEADS, BLOCK
        )
        taken += selected_before
        if split == 0:
            tl.store(unfinished + row, (last_key < 0).to(tl.int32))
        if last_key < 0:
            return
    write_slots(own, source, out, first, stop, taken, length, sinks, end, last_key, SELECTS, BLOCK)


@triton.jit
def _in_set(own_keys, position, length, sinks, end, last_key, SELECTS: tl.constexpr):
    """Sinks, the recency window, and candidates whose key is at most ``last_key``."""
    candidate = (position >= sinks) & (position < end)
    take = (position < length) & (candidate == 0)
    if SELECTS:
        key = tl.load(own_keys + position, mask=candidate, other=UNRANKED)
        take = take | (candidate & (key <= last_key))
    return take


@triton.jit
def write_slots(
    own_keys,
    source,
    out,
    first,
    stop,
    taken,
    length,
    sinks,
    end,
    last_key,
    SELECTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the slots of the set's positions in ``first .. stop - 1``; ``taken`` slots come before them."""
    for tile in range(first, stop, BLOCK):
        position = tile + tl.arange(0, BLOCK)
        take = _in_set(own_keys, position, length, sinks, end, last_key, SELECTS) & (position < stop)
        index = taken + tl.cumsum(take.to(tl.int32), 0) - 1
        tl.store(out + index, tl.load(source + position, mask=take, other=0), mask=take)
        taken += tl.sum(take.to(tl.int32), 0)
