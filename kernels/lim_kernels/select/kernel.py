"""The token set of LessIsMore on the device; ``reference`` is the definition, ``launch`` the caller.

``score_kernel`` writes every query head's scores. ``shortlist_kernel`` ranks each head's best few hundred candidates
and lowers their tokens' unified keys. ``emit_kernel`` reads the merged list from its start; where it holds ``m`` tokens
before any shortlist ends, the set is exact and its slots are written. Otherwise the request is flagged, and
``full_ranking`` ranks all ``m`` candidates of each head. A request with at most ``K`` tokens is copied. Nothing depends
on the order in which programs run.
"""

import triton
import triton.language as tl

UNRANKED = 2**31 - 1  # the key of a token that no head ranks among its first m

_UNRANKED = tl.constexpr(UNRANKED)
_LOWEST = tl.constexpr(-(2**31))
# Plain numbers that change with the configuration: no variant of a kernel is compiled for each of their values.
NUMBERS = [
    "batch",
    "budget",
    "first_request",
    "group",
    "key_limit",
    "least",
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


@triton.jit(do_not_specialize=NUMBERS)
def score_kernel(
    q,
    k_cache,
    kv_indptr,
    kv_indices,
    scores,
    keys,
    first_request,
    num_splits,
    q_stride_b,
    q_stride_h,
    k_stride_t,
    k_stride_h,
    scores_stride_b,
    scores_stride_h,
    keys_stride_b,
    budget,
    sinks,
    recent,
    group,
    GROUP_PAD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Scores of one KV head's group, as int32 that order as the scores do. Grid: (splits, KV heads, requests)."""
    split, kv_head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    request = first_request + row
    begin = tl.load(kv_indptr + request)
    length = tl.load(kv_indptr + request + 1) - begin
    if length <= budget:
        return
    head = tl.arange(0, GROUP_PAD)
    dim = tl.arange(0, HEAD_DIM_PAD)
    q_row = q + request.to(tl.int64) * q_stride_b + (kv_head * group + head)[:, None] * q_stride_h + dim[None, :]
    queries = tl.load(q_row, mask=(head < group)[:, None] & (dim < HEAD_DIM)[None, :], other=0.0)
    if UPCAST:
        queries = queries.to(tl.float32)
    k_head = k_cache + kv_head.to(tl.int64) * k_stride_h
    out = scores + row.to(tl.int64) * scores_stride_b + (kv_head * group + head).to(tl.int64)[:, None] * scores_stride_h
    end = length - recent
    for tile in tl.range(sinks + split * BLOCK_N, end, num_splits * BLOCK_N, num_stages=3):
        position = tile + tl.arange(0, BLOCK_N)
        inside = position < end
        slot = tl.load(kv_indices + begin + position, mask=inside, other=0).to(tl.int64)
        tokens = tl.load(
            k_head + slot[:, None] * k_stride_t + dim[None, :],
            mask=inside[:, None] & (dim < HEAD_DIM)[None, :],
            other=0.0,
        )  # [BLOCK_N, D]
        score = tl.dot(queries, tl.trans(tokens.to(queries.dtype)), input_precision="ieee")  # [GROUP_PAD, BLOCK_N]
        bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)  # -0.0 ties with 0.0
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        tl.store(out + position[None, :], ordered, mask=(head < group)[:, None] & inside[None, :])
        if kv_head == 0:
            tl.store(keys + row.to(tl.int64) * keys_stride_b + position, _UNRANKED, mask=inside)


@triton.jit
def _find_cut(own, begin, end, least, MOST: tl.constexpr, BLOCK: tl.constexpr):
    """A score that ``least`` to ``MOST`` candidates reach, and how many; 0 of them where ties allow no such score.

    The search quarters the range of scores; more than ``MOST`` reach ``low``, fewer than ``least`` reach ``high``.
    """
    low = tl.full((), -(2**31), tl.int64)
    high = tl.full((), 2**31 - 1, tl.int64)
    cut = low
    count = end - begin
    searching = count > MOST
    while searching:
        quarter = tl.maximum((high - low) // 4, 1)
        t1, t2, t3 = low + quarter, tl.minimum(low + 2 * quarter, high), tl.minimum(low + 3 * quarter, high)
        n1 = tl.zeros([BLOCK], tl.int32)
        n2 = tl.zeros([BLOCK], tl.int32)
        n3 = tl.zeros([BLOCK], tl.int32)
        for tile in range(begin, end, BLOCK):
            position = tile + tl.arange(0, BLOCK)
            score = tl.load(own + position, mask=position < end, other=_LOWEST)
            n1 += (score >= t1.to(tl.int32)).to(tl.int32)
            n2 += (score >= t2.to(tl.int32)).to(tl.int32)
            n3 += (score >= t3.to(tl.int32)).to(tl.int32)
        c1, c2, c3 = tl.sum(n1, 0), tl.sum(n2, 0), tl.sum(n3, 0)
        cut = tl.where(c1 <= MOST, t1, tl.where(c2 <= MOST, t2, t3))
        count = tl.where(c1 <= MOST, c1, tl.where(c2 <= MOST, c2, c3))
        fits = (count <= MOST) & (count >= least)
        new_low = tl.where(c3 > MOST, t3, tl.where(c2 > MOST, t2, tl.where(c1 > MOST, t1, low)))
        high = tl.where(c1 < least, t1, tl.where(c2 < least, t2, tl.where(c3 < least, t3, high)))
        low = new_low
        count = tl.where(fits, count, 0)
        searching = (fits == 0) & (high - low > 1)
    return cut.to(tl.int32), count


@triton.jit(do_not_specialize=NUMBERS)
def shortlist_kernel(
    scores,
    keys,
    shortlists,
    counts,
    scratch,
    kv_indptr,
    first_request,
    scores_stride_b,
    scores_stride_h,
    keys_stride_b,
    budget,
    sinks,
    recent,
    num_heads,
    least,
    MOST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One head's best candidates in order; each lowers its token's key. Grid: (heads, requests).

    ``shortlists``: [requests, H, MOST] int32 positions by rank; ``counts``: [requests, H] int32, how many ranks are
    complete; ``scratch``: [requests, H, MOST] int64.
    """
    head, row = tl.program_id(0), tl.program_id(1)
    begin = tl.load(kv_indptr + first_request + row)
    length = tl.load(kv_indptr + first_request + row + 1) - begin
    if length <= budget:
        return
    own = scores + row.to(tl.int64) * scores_stride_b + head.to(tl.int64) * scores_stride_h
    list_index = row.to(tl.int64) * num_heads + head
    found = scratch + list_index * MOST
    end = length - recent
    cut, count = _find_cut(own, sinks, end, least, MOST, BLOCK)
    tl.store(counts + list_index, count)
    if count == 0:
        return
    taken = tl.zeros((), tl.int32)
    for tile in range(sinks, end, BLOCK):
        position = tile + tl.arange(0, BLOCK)
        score = tl.load(own + position, mask=position < end, other=_LOWEST)
        take = (position < end) & (score >= cut)
        index = taken + tl.cumsum(take.to(tl.int32), 0) - 1
        falling = (2**31 - 1 - score.to(tl.int64)) << 31  # higher scores sort first, then lower positions
        tl.store(found + index, falling | position.to(tl.int64), mask=take)
        taken += tl.sum(take.to(tl.int32), 0)
    tl.debug_barrier()  # the program reads back what its other threads wrote
    rank = tl.arange(0, MOST)
    best = tl.load(found + rank, mask=rank < count, other=0x7FFFFFFFFFFFFFFF)
    position = (tl.sort(best) & 0x7FFFFFFF).to(tl.int32)
    tl.store(shortlists + list_index * MOST + rank, position, mask=rank < count)
    tl.atomic_min(
        keys + row.to(tl.int64) * keys_stride_b + position,
        rank * num_heads + head,
        mask=rank < count,
        sem="relaxed",
    )


@triton.jit
def _last_key(
    own_keys, shortlist, counts, selected, num_heads, MOST: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr
):
    """The ``m``-th key of the merged list, or -1 where a shortlist ends before it."""
    head = tl.arange(0, HEADS)
    complete = tl.min(tl.load(counts + head, mask=head < num_heads, other=MOST), 0)
    limit = complete * num_heads
    last = tl.full((), -1, tl.int32)
    seen = tl.zeros((), tl.int32)
    start = tl.zeros((), tl.int32)
    while (last < 0) & (start < limit):
        place = start + tl.arange(0, BLOCK)  # rank * H + head
        rank = place // num_heads
        inside = place < limit
        position = tl.load(shortlist + (place - rank * num_heads) * MOST + rank, mask=inside, other=0)
        key = tl.load(own_keys + position, mask=inside, other=-1)
        first = (inside & (key == place)).to(tl.int32)  # no head ranks this token earlier
        running = seen + tl.cumsum(first, 0)
        seen += tl.sum(first, 0)
        if seen >= selected:
            last = tl.min(tl.where(running >= selected, place, _UNRANKED), 0)
        start += BLOCK
    return last


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
):
    """The set's cache slots in ascending position order, or a flag in ``unfinished``. Grid: (splits, requests).

    Every split of a request finds the same last key, then writes its own stretch of positions.
    """
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
    if SELECTS:
        lists = row.to(tl.int64) * num_heads
        last_key = _last_key(own, shortlists + lists * MOST, counts + lists, selected, num_heads, MOST, HEADS, BLOCK)
        if split == 0:
            tl.store(unfinished + row, (last_key < 0).to(tl.int32))
        if last_key < 0:
            return
    before = tl.zeros([BLOCK], tl.int32)
    for tile in range(0, first, BLOCK):
        take = _in_set(own, tile + tl.arange(0, BLOCK), length, sinks, end, last_key, SELECTS)
        before += take.to(tl.int32)
    write_slots(own, source, out, first, stop, tl.sum(before, 0), length, sinks, end, last_key, SELECTS, BLOCK)


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
