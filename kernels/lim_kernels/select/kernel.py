"""The token set of LessIsMore on the device; ``reference`` is the definition, ``launch`` the caller.

A SELECT layer's attention writes every query head's scores with ``store_scores``. ``shortlist_kernel`` ranks each
head's best few hundred candidates and lowers their tokens' unified keys. ``emit_kernel`` reads the merged list from its
start; where it holds ``m`` tokens before any shortlist ends, the set is exact and its slots are written. Otherwise the
request is flagged, and ``full_ranking`` ranks all ``m`` candidates of each head. A request with at most ``K`` tokens is
copied. Nothing depends on the order in which programs run.
"""

import triton
import triton.language as tl

from lim_kernels.chain import await_previous

UNRANKED = 2**31 - 1  # the key of a token that no head ranks among its first m

_UNRANKED = tl.constexpr(UNRANKED)
_LOWEST = tl.constexpr(-(2**31))
# Plain numbers that change with the configuration: no variant of a kernel is compiled for each of their values.
NUMBERS = [
    "batch",
    "budget",
    "first_request",
    "key_limit",
    "num_heads",
    "num_splits",
    "recent",
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
def store_scores(score, position, span, scores, maxima, keys, kept, sinks, end, resets_keys, SPAN: tl.constexpr):
    """Leave a tile of scores behind, as int32 that order as the scores do, and the highest of every ``SPAN`` positions.

    ``score``: [GROUP_PAD, BLOCK_N] float32; ``scores``, ``maxima``: [GROUP_PAD, 1] pointers to the heads' rows;
    ``kept``: [GROUP_PAD], whose to store. What is no candidate gets the lowest value there is, which no score has.
    """
    candidate = (position >= sinks) & (position < end)
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)  # -0.0 ties with 0.0
    ordered = tl.where(candidate[None, :], bits ^ ((bits >> 31) & 0x7FFFFFFF), _LOWEST)
    tl.store(scores + position[None, :], ordered, mask=kept[:, None])
    by_span = tl.reshape(ordered, [score.shape[0], score.shape[1] // SPAN, SPAN])
    tl.store(maxima + span[None, :], tl.max(by_span, 2), mask=kept[:, None])
    tl.store(keys + position, _UNRANKED, mask=(position >= 0) & resets_keys)


@triton.jit
def _count_at_least(own, spans, count, t1, t2, t3, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    """How many of ``count`` spans' maxima reach each threshold, or, with ``SPAN`` > 1, of listed spans' scores."""
    n12 = tl.zeros([BLOCK], tl.int32)  # two counts in one, of up to 65,535 tiles
    n3 = tl.zeros([BLOCK], tl.int32)
    for tile in range(0, count * SPAN, BLOCK):
        score, _ = _load_tile(own, spans, count, tile, SPAN, BLOCK)
        n12 += (score >= t1).to(tl.int32) + ((score >= t2).to(tl.int32) << 16)
        n3 += (score >= t3).to(tl.int32)
    packed = (n12 & 0xFFFF).to(tl.int64) | ((n12 >> 16) & 0xFFFF).to(tl.int64) << 21 | n3.to(tl.int64) << 42
    sums = tl.sum(packed, 0)
    return (sums & 0x1FFFFF).to(tl.int32), ((sums >> 21) & 0x1FFFFF).to(tl.int32), (sums >> 42).to(tl.int32)


@triton.jit
def _load_tile(own, spans, count, tile, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    """Maxima, or with ``SPAN`` > 1 the scores of listed spans, the lowest value where there are no more; positions."""
    index = tile + tl.arange(0, BLOCK)
    inside = index < count * SPAN
    place = index
    if SPAN > 1:
        place = tl.load(spans + index // SPAN, mask=inside, other=0) * SPAN + index % SPAN
    return tl.load(own + place, mask=inside, other=_LOWEST), place


@triton.jit
def _find_cut(own, spans, count, low, highest, least, most, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    """A value above ``low`` that ``least`` to ``most`` reach, and how many; 0 of them where ties allow no such value.

    All that count reach ``low``, none is above ``highest``. The search looks one and two octaves below first, where the
    best scores mostly lie, then quarters the range. More than ``most`` reach ``low``, fewer than ``least`` ``high``.
    """
    high = highest.to(tl.int64) + 1
    cut = low
    found = tl.zeros((), tl.int32)
    octave = 1 << 23  # a step of the exponent
    t1 = tl.maximum(high - 2 * octave, low + 1)
    t2 = tl.maximum(high - octave, low + 1)
    t3 = high
    searching = high - low > 1
    while searching:
        c1, c2, c3 = _count_at_least(own, spans, count, t1.to(tl.int32), t2.to(tl.int32), t3.to(tl.int32), SPAN, BLOCK)
        cut = tl.where(c1 <= most, t1, tl.where(c2 <= most, t2, t3))
        reach = tl.where(c1 <= most, c1, tl.where(c2 <= most, c2, c3))
        fits = (reach <= most) & (reach >= least)
        new_low = tl.where(c3 > most, t3, tl.where(c2 > most, t2, tl.where(c1 > most, t1, low)))
        high = tl.where(c1 < least, t1, tl.where(c2 < least, t2, tl.where(c3 < least, t3, high)))
        low = new_low
        found = tl.where(fits, reach, 0)
        searching = (fits == 0) & (high - low > 1)
        step = tl.maximum((high - low) // 4, 1)
        t1, t2, t3 = low + step, tl.minimum(low + 2 * step, high), tl.minimum(low + 3 * step, high)
    return cut, found


@triton.jit
def _wanted_ranks(candidates, selected, num_heads, MOST: tl.constexpr):
    """Ranks per head that a shortlist should hold: 3.5 times what heads of independent taste would need.

    ``d`` ranks of ``H`` such heads cover ``1 - exp(-d * H / candidates)`` of the candidates. In SmolLM2's layers, on
    text, the heads' merged list is 1.4 to 3.2 times as deep.
    """
    free = tl.maximum(candidates - selected, 1).to(tl.float32) / candidates
    independent = -tl.log(free) * candidates / num_heads
    return tl.minimum(tl.maximum((3.5 * independent).to(tl.int32), 16), MOST // 2)


@triton.jit
def _spans_with(num_spans, count):
    """Spans that hold the best ``count`` candidates, were these spread evenly."""
    share = tl.exp(-count.to(tl.float32) / num_spans)
    return tl.maximum((num_spans * (1 - share)).to(tl.int32), 1)


@triton.jit
def _collect(own, spans, listed, cut, best, MOST: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    """List the listed spans' scores that reach ``cut``, in position order, the first ``MOST``; how many there are.

    ``best``: [2, MOST] int32, scores and positions.
    """
    taken = tl.zeros((), tl.int32)
    for tile in range(0, listed * SPAN, BLOCK):
        score, position = _load_tile(own, spans, listed, tile, SPAN, BLOCK)
        take = score >= cut
        index = taken + tl.cumsum(take.to(tl.int32), 0) - 1
        tl.store(best + index, score, mask=take & (index < MOST))
        tl.store(best + MOST + index, position, mask=take & (index < MOST))
        taken += tl.sum(take.to(tl.int32), 0)
    return taken


@triton.jit
def _rank(best, count, own_keys, shortlist, head, num_heads, MOST: tl.constexpr, RANK_BLOCK: tl.constexpr):
    """Count who comes before each of ``count`` listed scores; its position goes to that rank and lowers its key.

    Among equals the one listed earlier comes first.
    """
    for first in range(0, count, RANK_BLOCK):
        index = first + tl.arange(0, RANK_BLOCK)
        mine = tl.load(best + index, mask=index < count, other=0)
        before = tl.zeros([RANK_BLOCK, 32], tl.int32)
        for other in range(0, first, 32):
            place = other + tl.arange(0, 32)
            before += (tl.load(best + place)[None, :] >= mine[:, None]).to(tl.int32)
        for other in range(first, tl.minimum(first + RANK_BLOCK, count), 32):
            place = other + tl.arange(0, 32)
            others = tl.load(best + place, mask=place < count, other=_LOWEST)
            at_least = mine[:, None] + (place[None, :] >= index[:, None]).to(tl.int32)
            before += (others[None, :] >= at_least).to(tl.int32)
        for other in range(first + RANK_BLOCK, count, 32):
            place = other + tl.arange(0, 32)
            others = tl.load(best + place, mask=place < count, other=_LOWEST)
            before += (others[None, :] > mine[:, None]).to(tl.int32)
        rank = tl.sum(before, 1)
        position = tl.load(best + MOST + index, mask=index < count, other=0)
        tl.store(shortlist + rank, position, mask=index < count)
        tl.atomic_min(own_keys + position, rank * num_heads + head, mask=index < count, sem="relaxed")


@triton.jit(do_not_specialize=NUMBERS)
def shortlist_kernel(
    scores,
    maxima,
    keys,
    shortlists,
    counts,
    spans,
    best,
    kv_indptr,
    first_request,
    scores_stride_b,
    scores_stride_h,
    maxima_stride_b,
    maxima_stride_h,
    keys_stride_b,
    budget,
    selected,
    sinks,
    recent,
    num_heads,
    MOST: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """One head's best candidates in order; each lowers its token's key. Grid: (heads, requests).

    All candidates that reach some cut lie in the spans whose maximum does: nothing else of the head's scores is read.

    ``shortlists``: [requests, H, MOST] int32 positions by rank; ``counts``: [requests, H] int32, how many ranks are
    complete; ``spans``: [requests, H, MOST] and ``best``: [requests, H, 2, MOST] int32 are scratch.
    """
    await_previous(CHAINED)
    head, row = tl.program_id(0), tl.program_id(1)
    begin = tl.load(kv_indptr + first_request + row)
    length = tl.load(kv_indptr + first_request + row + 1) - begin
    if length <= budget:
        return
    list_index = row.to(tl.int64) * num_heads + head
    own = scores + row.to(tl.int64) * scores_stride_b + head.to(tl.int64) * scores_stride_h
    own_maxima = maxima + row.to(tl.int64) * maxima_stride_b + head.to(tl.int64) * maxima_stride_h
    spans += list_index * MOST
    best += list_index * 2 * MOST
    num_spans = tl.cdiv(length - recent, SPAN)
    least = _wanted_ranks(length - sinks - recent, selected, num_heads, MOST)
    real_spans = num_spans - sinks // SPAN
    wanted, most = _spans_with(real_spans, least), tl.minimum(_spans_with(real_spans, least * 3 // 2) + 1, MOST)
    highest = _highest(own_maxima, num_spans, BLOCK)
    lowest = tl.full((), -(2**31), tl.int64)
    cut, reach = _find_cut(own_maxima, spans, num_spans, lowest, highest, wanted, most, 1, BLOCK)
    count = tl.zeros((), tl.int32)
    if reach > 0:
        listed = tl.zeros((), tl.int32)
        for tile in range(0, num_spans, BLOCK):
            span = tile + tl.arange(0, BLOCK)
            take = tl.load(own_maxima + span, mask=span < num_spans, other=_LOWEST) >= cut.to(tl.int32)
            tl.store(spans + listed + tl.cumsum(take.to(tl.int32), 0) - 1, span, mask=take)
            listed += tl.sum(take.to(tl.int32), 0)
        tl.debug_barrier()  # the program reads back what its other threads wrote
        count = _collect(own, spans, listed, cut.to(tl.int32), best, MOST, SPAN, BLOCK)
        if count > 2 * least:
            cut, count = _find_cut(own, spans, listed, cut, highest, least, 2 * least, SPAN, BLOCK)
            if count > 0:
                tl.debug_barrier()
                _collect(own, spans, listed, cut.to(tl.int32), best, MOST, SPAN, BLOCK)
        tl.debug_barrier()
        own_keys = keys + row.to(tl.int64) * keys_stride_b
        _rank(best, count, own_keys, shortlists + list_index * MOST, head, num_heads, MOST, RANK_BLOCK)
    tl.store(counts + list_index, count)


@triton.jit
def _highest(own_maxima, num_spans, BLOCK: tl.constexpr):
    highest = tl.full([BLOCK], _LOWEST, tl.int32)
    for tile in range(0, num_spans, BLOCK):
        span = tile + tl.arange(0, BLOCK)
        highest = tl.maximum(highest, tl.load(own_maxima + span, mask=span < num_spans, other=_LOWEST))
    return tl.max(highest, 0)


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
            last = tl.min(tl.where(running >= selected, place, _UNRANKED), 0)
        start += BLOCK
    return last, tl.sum(before, 0)


@triton.jit(do_not_specialize=NUMBERS)
def emit_kernel(
    keys,
    shortlists,
    counts,
    unfinished,
    kv_indptr,
    kv_indices,
    sparse_indptr,
    sparse_indices,
    first_request,
    num_splits,
    keys_stride_b,
    budget,
    selected,
    sinks,
    recent,
    num_heads,
    SELECTS: tl.constexpr,
    MOST: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """The set's cache slots in ascending position order, or a flag in ``unfinished``. Grid: (splits, requests).

    Every split of a request finds the same last key, then writes its own stretch of positions.
    """
    await_previous(CHAINED)
    split, row = tl.program_id(0), tl.program_id(1)
    begin = tl.load(kv_indptr + first_request + row)
    length = tl.load(kv_indptr + first_request + row + 1) - begin
    source = kv_indices + begin
    out = sparse_indices + tl.load(sparse_indptr + first_request + row)
    own = keys + row.to(tl.int64) * keys_stride_b
    stretch = tl.cdiv(tl.cdiv(length, num_splits), BLOCK) * BLOCK
    first, stop = split * stretch, tl.minimum((split + 1) * stretch, length)
    if length <= budget:
        for tile in range(first, stop, BLOCK):
            position = tile + tl.arange(0, BLOCK)
            tl.store(out + position, tl.load(source + position, mask=position < stop, other=0), mask=position < stop)
        if SELECTS and split == 0:
            tl.store(unfinished + row, 0)
        return
    end = length - recent
    last_key = tl.full((), -1, tl.int32)
    taken = tl.minimum(first, sinks) + tl.maximum(first - end, 0)
    if SELECTS:
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
        key = tl.load(own_keys + position, mask=candidate, other=_UNRANKED)
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
