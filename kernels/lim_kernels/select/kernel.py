"""The token set of LessIsMore on the device, in three steps; ``reference`` is the definition, ``launch`` the caller.

``score_kernel`` writes every query head's scores, ``rank_kernel`` finds each head's first ``m`` candidates and lowers
the tokens' unified keys, ``emit_kernel`` takes the ``m`` smallest keys and writes the set's cache slots. A request
with at most ``K`` tokens takes no part in the first two. Nothing depends on the order in which programs run.
"""

import triton
import triton.language as tl

UNRANKED = 2**31 - 1  # the key of a token that no head ranks among its first m

_RADIX_BITS = tl.constexpr(8)
_RADIX = tl.constexpr(256)
_SIGN = tl.constexpr(0x80000000)
_UNRANKED = tl.constexpr(UNRANKED)
# Plain numbers that change with the configuration: no variant of a kernel is compiled for each of their values.
_NUMBERS = [
    "first_request",
    "num_splits",
    "budget",
    "selected",
    "sinks",
    "recent",
    "num_heads",
    "group",
    "key_limit",
    "batch",
]


@triton.jit(do_not_specialize=_NUMBERS)
def sparse_indptr_kernel(kv_indptr, sparse_indptr, batch, budget, BLOCK: tl.constexpr):
    """``sparse_indptr[b + 1] - sparse_indptr[b] = min(n_b, K)``; one program."""
    row = tl.arange(0, BLOCK)
    inside = row < batch
    begin = tl.load(kv_indptr + row, mask=inside, other=0)
    end = tl.load(kv_indptr + row + 1, mask=inside, other=0)
    ends = tl.cumsum(tl.minimum(end - begin, budget), 0)
    tl.store(sparse_indptr + row + 1, ends, mask=inside)
    tl.store(sparse_indptr + row, 0, mask=row == 0)


@triton.jit(do_not_specialize=_NUMBERS)
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
def _load_digits(source, position, inside, limit, KEYS: tl.constexpr):
    """uint32 whose largest come first: scores, or keys below ``limit`` counted down."""
    value = tl.load(source + position, mask=inside, other=0)
    if KEYS:
        return (limit - 1 - value).to(tl.uint32), inside & (value < limit)
    return value.to(tl.uint32, bitcast=True) ^ _SIGN, inside


@triton.jit
def _kth_largest(source, begin, end, k, limit, KEYS: tl.constexpr, PASSES: tl.constexpr, BLOCK: tl.constexpr):
    """The ``k``-th largest digit string in ``source[begin:end]`` and how many equal ones belong to the first ``k``.

    A radix search from the most significant of ``PASSES`` digits down.
    """
    prefix = tl.zeros((), tl.uint32)
    need = k
    bins = tl.arange(0, _RADIX)
    for step in tl.static_range(PASSES):
        shift = (PASSES - 1 - step) * _RADIX_BITS
        counts = tl.zeros([_RADIX], tl.int32)
        for tile in range(begin, end, BLOCK):
            position = tile + tl.arange(0, BLOCK)
            digits, valid = _load_digits(source, position, position < end, limit, KEYS)
            if step > 0:
                valid = valid & ((digits >> (shift + _RADIX_BITS)) == (prefix >> (shift + _RADIX_BITS)))
            counts += tl.histogram(((digits >> shift) & (_RADIX - 1)).to(tl.int32), _RADIX, mask=valid)
        at_least = tl.cumsum(counts, 0, reverse=True)
        digit = tl.max(tl.where(at_least >= need, bins, 0), 0)
        need -= tl.sum(tl.where(bins > digit, counts, 0), 0)
        prefix = prefix | (digit.to(tl.uint32) << shift)
    return prefix, need


@triton.jit(do_not_specialize=_NUMBERS)
def rank_kernel(
    scores,
    keys,
    ranked,
    kv_indptr,
    first_request,
    scores_stride_b,
    scores_stride_h,
    keys_stride_b,
    ranked_stride_b,
    ranked_stride_h,
    budget,
    selected,
    sinks,
    recent,
    num_heads,
    SELECTED_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One head's first ``m`` candidates in order; each lowers its token's key. Grid: (heads, requests).

    ``ranked`` is scratch: [requests, H, m] int64.
    """
    head, row = tl.program_id(0), tl.program_id(1)
    begin = tl.load(kv_indptr + first_request + row)
    length = tl.load(kv_indptr + first_request + row + 1) - begin
    if length <= budget:
        return
    own = scores + row.to(tl.int64) * scores_stride_b + head.to(tl.int64) * scores_stride_h
    scratch = ranked + row.to(tl.int64) * ranked_stride_b + head.to(tl.int64) * ranked_stride_h
    end = length - recent
    threshold, ties = _kth_largest(own, sinks, end, selected, 0, False, 4, BLOCK)
    taken = tl.zeros((), tl.int32)
    tied = tl.zeros((), tl.int32)
    for tile in range(sinks, end, BLOCK):
        position = tile + tl.arange(0, BLOCK)
        digits, valid = _load_digits(own, position, position < end, 0, False)
        tie = valid & (digits == threshold)
        order = tied + tl.cumsum(tie.to(tl.int32), 0)
        take = valid & ((digits > threshold) | (tie & (order <= ties)))
        index = taken + tl.cumsum(take.to(tl.int32), 0) - 1
        falling = (digits ^ 0xFFFFFFFF).to(tl.int64) << 31  # higher scores sort first, then lower positions
        tl.store(scratch + index, falling | position.to(tl.int64), mask=take)
        tied += tl.sum(tie.to(tl.int32), 0)
        taken += tl.sum(take.to(tl.int32), 0)
    tl.debug_barrier()  # the program reads back what its other threads wrote
    rank = tl.arange(0, SELECTED_PAD)
    found = tl.load(scratch + rank, mask=rank < selected, other=0x7FFFFFFFFFFFFFFF)
    position = tl.sort(found) & 0x7FFFFFFF
    tl.atomic_min(
        keys + row.to(tl.int64) * keys_stride_b + position,
        rank * num_heads + head,
        mask=rank < selected,
        sem="relaxed",
    )


@triton.jit(do_not_specialize=_NUMBERS)
def emit_kernel(
    keys,
    kv_indptr,
    kv_indices,
    sparse_indptr,
    sparse_indices,
    first_request,
    keys_stride_b,
    budget,
    selected,
    sinks,
    recent,
    key_limit,
    SELECTS: tl.constexpr,
    KEY_PASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The set's cache slots in ascending position order. Grid: (requests,)."""
    row = tl.program_id(0)
    begin = tl.load(kv_indptr + first_request + row)
    length = tl.load(kv_indptr + first_request + row + 1) - begin
    out = sparse_indices + tl.load(sparse_indptr + first_request + row)
    source = kv_indices + begin
    if length <= budget:
        for tile in range(0, length, BLOCK):
            position = tile + tl.arange(0, BLOCK)
            slot = tl.load(source + position, mask=position < length, other=0)
            tl.store(out + position, slot, mask=position < length)
        return
    own = keys + row.to(tl.int64) * keys_stride_b
    end = length - recent
    if SELECTS:
        smallest, _ = _kth_largest(own, sinks, end, selected, key_limit, True, KEY_PASSES, BLOCK)
        last_key = key_limit - 1 - smallest.to(tl.int32)
    taken = tl.zeros((), tl.int32)
    for tile in range(0, length, BLOCK):
        position = tile + tl.arange(0, BLOCK)
        candidate = (position >= sinks) & (position < end)
        take = (position < length) & (candidate == 0)
        if SELECTS:
            key = tl.load(own + position, mask=candidate, other=_UNRANKED)
            take = take | (candidate & (key <= last_key))
        index = taken + tl.cumsum(take.to(tl.int32), 0) - 1
        tl.store(out + index, tl.load(source + position, mask=take, other=0), mask=take)
        taken += tl.sum(take.to(tl.int32), 0)
