"""Every head's best candidates in order, a few hundred of them: all that ranking by rank needs of most requests."""

import triton
import triton.language as tl

from lim_kernels.attend.scores import LOWEST
from lim_kernels.chain import await_previous
from lim_kernels.ragged import load_extent
from lim_kernels.select.emit import NUMBERS


@triton.jit
def _count_at_least(values, spans, count, t1, t2, t3, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    """How many of ``count`` spans' maxima reach each threshold, or, with ``SPAN`` > 1, of listed spans' scores."""
    # [BLOCK]
    n12 = tl.zeros([BLOCK], tl.int32)  # two counts in one, of up to 65,535 tiles
    n3 = tl.zeros([BLOCK], tl.int32)
    for tile in range(0, count * SPAN, BLOCK):
        score, _ = _load_tile(values, spans, count, tile, SPAN, BLOCK)
        n12 += (score >= t1).to(tl.int32) + ((score >= t2).to(tl.int32) << 16)
        n3 += (score >= t3).to(tl.int32)
    packed = (n12 & 0xFFFF).to(tl.int64) | ((n12 >> 16) & 0xFFFF).to(tl.int64) << 21 | n3.to(tl.int64) << 42
    sums = tl.sum(packed, 0)
    return (sums & 0x1FFFFF).to(tl.int32), ((sums >> 21) & 0x1FFFFF).to(tl.int32), (sums >> 42).to(tl.int32)


@triton.jit
def _load_tile(values, spans, count, tile, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    """Maxima, or with ``SPAN`` > 1 the scores of listed spans, the lowest value where there are no more; positions."""
    index = tile + tl.arange(0, BLOCK)  # [BLOCK]
    inside = index < count * SPAN
    position = index
    if SPAN > 1:
        position = tl.load(spans + index // SPAN, mask=inside, other=0) * SPAN + index % SPAN
    return tl.load(values + position, mask=inside, other=LOWEST), position


@triton.jit
def _find_cut(values, spans, count, low, highest, least, most, SPAN: tl.constexpr, BLOCK: tl.constexpr):
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
        c1, c2, c3 = _count_at_least(
            values, spans, count, t1.to(tl.int32), t2.to(tl.int32), t3.to(tl.int32), SPAN, BLOCK
        )
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
def _collect(values, spans, listed, cut, best, MOST: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    """List the listed spans' scores that reach ``cut``, in position order, the first ``MOST``; how many there are.

    ``best``: [2, MOST] int32, scores and positions.
    """
    taken = tl.zeros((), tl.int32)
    for tile in range(0, listed * SPAN, BLOCK):
        score, position = _load_tile(values, spans, listed, tile, SPAN, BLOCK)
        take = score >= cut
        index = taken + tl.cumsum(take.to(tl.int32), 0) - 1
        tl.store(best + index, score, mask=take & (index < MOST))
        tl.store(best + MOST + index, position, mask=take & (index < MOST))
        taken += tl.sum(take.to(tl.int32), 0)
    return taken


@triton.jit
def _rank(best, count, ranks_row, shortlist, head, rank_heads, MOST: tl.constexpr, RANK_BLOCK: tl.constexpr):
    """Count the scores before each of ``count`` listed ones; its position goes to that place in the shortlist.

    Among equals the one listed earlier comes first. ``head`` is counted among the ``rank_heads`` of all devices.
    """
    for first in range(0, count, RANK_BLOCK):
        index = first + tl.arange(0, RANK_BLOCK)  # [RANK_BLOCK]
        mine = tl.load(best + index, mask=index < count, other=0)
        before = tl.zeros([RANK_BLOCK, 32], tl.int32)
        for other in range(0, first, 32):
            other_index = other + tl.arange(0, 32)  # [32]
            before += (tl.load(best + other_index)[None, :] >= mine[:, None]).to(tl.int32)
        for other in range(first, tl.minimum(first + RANK_BLOCK, count), 32):
            other_index = other + tl.arange(0, 32)  # [32]
            others = tl.load(best + other_index, mask=other_index < count, other=LOWEST)
            at_least = mine[:, None] + (other_index[None, :] >= index[:, None]).to(tl.int32)
            before += (others[None, :] >= at_least).to(tl.int32)
        for other in range(first + RANK_BLOCK, count, 32):
            other_index = other + tl.arange(0, 32)  # [32]
            others = tl.load(best + other_index, mask=other_index < count, other=LOWEST)
            before += (others[None, :] > mine[:, None]).to(tl.int32)
        head_rank = tl.sum(before, 1)
        position = tl.load(best + MOST + index, mask=index < count, other=0)
        tl.store(shortlist + head_rank, position, mask=index < count)
        tl.atomic_min(ranks_row + position, head_rank * rank_heads + head, mask=index < count, sem="relaxed")


@triton.jit(do_not_specialize=NUMBERS)
def shortlist_kernel(
    scores,
    maxima,
    ranks,
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
    ranks_stride_b,
    budget,
    selected,
    sinks,
    recent,
    num_heads,
    rank_heads,
    first_head,
    MOST: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """One head's best candidates in order; each lowers its token's unified rank. Grid: (heads, requests).

    All candidates that reach some cut lie in the spans whose maximum does: nothing else of the head's scores is read.

    ``shortlists``: [requests, H, MOST] int32 positions by the head's own rank; ``counts``: [requests, H] int32, how
    many ranks are complete; ``spans``: [requests, H, MOST] and ``best``: [requests, H, 2, MOST] int32 are scratch.
    """
    await_previous(CHAINED)
    head, row = tl.program_id(0), tl.program_id(1)
    _, length = load_extent(kv_indptr, first_request + row)
    if length <= budget:
        return
    list_index = row.to(tl.int64) * num_heads + head
    scores_row = scores + row.to(tl.int64) * scores_stride_b + head.to(tl.int64) * scores_stride_h
    maxima_row = maxima + row.to(tl.int64) * maxima_stride_b + head.to(tl.int64) * maxima_stride_h
    spans += list_index * MOST
    best += list_index * 2 * MOST
    num_spans = tl.cdiv(length - recent, SPAN)
    least = _wanted_ranks(length - sinks - recent, selected, num_heads, MOST)
    real_spans = num_spans - sinks // SPAN
    wanted, most = _spans_with(real_spans, least), tl.minimum(_spans_with(real_spans, least * 3 // 2) + 1, MOST)
    highest = _highest(maxima_row, num_spans, BLOCK)
    lowest = tl.full((), -(2**31), tl.int64)
    cut, reach = _find_cut(maxima_row, spans, num_spans, lowest, highest, wanted, most, 1, BLOCK)
    count = tl.zeros((), tl.int32)
    if reach > 0:
        listed = tl.zeros((), tl.int32)
        for tile in range(0, num_spans, BLOCK):
            span = tile + tl.arange(0, BLOCK)  # [BLOCK]
            take = tl.load(maxima_row + span, mask=span < num_spans, other=LOWEST) >= cut.to(tl.int32)
            tl.store(spans + listed + tl.cumsum(take.to(tl.int32), 0) - 1, span, mask=take)
            listed += tl.sum(take.to(tl.int32), 0)
        tl.debug_barrier()  # the program reads back what its other threads wrote
        count = _collect(scores_row, spans, listed, cut.to(tl.int32), best, MOST, SPAN, BLOCK)
        if count > 2 * least:
            cut, count = _find_cut(scores_row, spans, listed, cut, highest, least, 2 * least, SPAN, BLOCK)
            if count > 0:
                tl.debug_barrier()
                _collect(scores_row, spans, listed, cut.to(tl.int32), best, MOST, SPAN, BLOCK)
        tl.debug_barrier()
        ranks_row = ranks + row.to(tl.int64) * ranks_stride_b
        _rank(best, count, ranks_row, shortlists + list_index * MOST, first_head + head, rank_heads, MOST, RANK_BLOCK)
    tl.store(counts + list_index, count)


@triton.jit
def _highest(maxima_row, num_spans, BLOCK: tl.constexpr):
    """The highest of a head's maxima."""
    highest = tl.full([BLOCK], LOWEST, tl.int32)
    for tile in range(0, num_spans, BLOCK):
        span = tile + tl.arange(0, BLOCK)
        highest = tl.maximum(highest, tl.load(maxima_row + span, mask=span < num_spans, other=LOWEST))
    return tl.max(highest, 0)
