"""Split-KV attention of requests' last tokens over a list of cache slots, and the merge of its splits.

``attend_kernel`` reads every key once for as many of the tokens as fit in a program. In a SELECT layer the scores that
the selection ranks leave on the way, so that dense attention and selection share one pass over the keys.
"""

import triton
import triton.language as tl

from lim_kernels.attend.fp8 import as_dtype
from lim_kernels.attend.scores import store_scores
from lim_kernels.chain import await_previous
from lim_kernels.ragged import load_extent

# Plain numbers that change with batch or configuration: no variant of a kernel is compiled for each of their values.
NUMBERS = ["budget", "first_request", "group", "kv_splits", "num_heads", "recent", "sinks"]

_HIDDEN = tl.constexpr(-3e38)  # a logit: finite, so that a query that sees nothing of a split merges with weight zero


@triton.jit
def _split_length(length, kv_splits, BLOCK_N: tl.constexpr):
    """Tokens of one split: whole tiles, so that no tile belongs to two splits."""
    return tl.cdiv(tl.cdiv(length, kv_splits), BLOCK_N) * BLOCK_N


@triton.jit
def _partial_row(row, split, kv_splits, token, head, num_heads, Q_LEN: tl.constexpr):
    """Row of ``partial`` where a split leaves its output of one query token and head."""
    return (row * kv_splits + split).to(tl.int64) * (Q_LEN * num_heads) + token * num_heads + head


@triton.jit(do_not_specialize=NUMBERS)
def attend_kernel(
    q,
    k_cache,
    v_cache,
    kv_indptr,
    kv_indices,
    partial,
    partial_lse,
    scores,
    maxima,
    ranks,
    first_request,
    kv_splits,
    group,
    logits_scale,
    soft_cap,
    q_stride_b,
    q_stride_h,
    k_stride_t,
    k_stride_h,
    v_stride_t,
    v_stride_h,
    num_heads,
    scores_stride_b,
    scores_stride_h,
    maxima_stride_b,
    maxima_stride_h,
    ranks_stride_b,
    budget,
    sinks,
    recent,
    Q_LEN: tl.constexpr,
    Q_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    CAPPED: tl.constexpr,
    UPCAST: tl.constexpr,
    SELECTS: tl.constexpr,
    SPAN: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Attend with one KV head's group of query heads to one split of a request.

    Grid: (KV heads * blocks of query tokens, splits, requests).

    A request's last ``Q_LEN`` tokens are its queries, ``Q_TILE`` of them in a program: rows are heads by tokens.
    ``partial``: [requests * splits, Q_LEN, H, D] float32, normalised; ``partial_lse``: the same without D, base 2.
    ``logits_scale``: factor of ``q . k`` for logits in base 2; with a soft cap ``c``, for the argument of ``tanh``, and
    ``soft_cap`` is ``c`` in base 2.
    """
    await_previous(CHAINED)
    Q_BLOCKS: tl.constexpr = (Q_LEN + Q_TILE - 1) // Q_TILE
    block, split, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_head = block // Q_BLOCKS
    request = first_request + row
    begin, length = load_extent(kv_indptr, request)
    size = _split_length(length, kv_splits, BLOCK_N)
    start = split * size
    stop = tl.minimum(start + size, length)
    if start >= stop:
        return
    lane = tl.arange(0, ROWS)  # [ROWS]
    head, token = lane // Q_TILE, block % Q_BLOCKS * Q_TILE + lane % Q_TILE
    dim = tl.arange(0, HEAD_DIM_PAD)  # [D]
    q_head = kv_head * group + head
    real_row = (head < group) & (token < Q_LEN)
    real_dim = dim < HEAD_DIM
    first_row = q + request.to(tl.int64) * Q_LEN * q_stride_b
    q_row = first_row + token[:, None] * q_stride_b + q_head[:, None] * q_stride_h + dim[None, :]
    # [ROWS, D]
    queries = tl.load(q_row, mask=real_row[:, None] & real_dim[None, :], other=0.0)
    if UPCAST:
        queries = queries.to(tl.float32)
    k_head = k_cache + kv_head.to(tl.int64) * k_stride_h
    v_head = v_cache + kv_head.to(tl.int64) * v_stride_h
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    output = tl.zeros([ROWS, HEAD_DIM_PAD], tl.float32)
    for tile in tl.range(start, stop, BLOCK_N, num_stages=STAGES):
        position = tile + tl.arange(0, BLOCK_N)  # [BLOCK_N]
        inside = position < stop
        slot = tl.load(kv_indices + begin + position, mask=inside, other=0).to(tl.int64)
        # [BLOCK_N, D]
        wanted = inside[:, None] & real_dim[None, :]
        keys = tl.load(k_head + slot[:, None] * k_stride_t + dim[None, :], mask=wanted, other=0.0)
        values = tl.load(v_head + slot[:, None] * v_stride_t + dim[None, :], mask=wanted, other=0.0)
        # [ROWS, BLOCK_N]
        score = tl.dot(queries, tl.trans(as_dtype(keys, queries.dtype)), input_precision="ieee")
        if SELECTS:
            store_scores(
                score,
                position,
                tile // SPAN + tl.arange(0, BLOCK_N // SPAN),
                scores + row.to(tl.int64) * scores_stride_b + q_head.to(tl.int64)[:, None] * scores_stride_h,
                maxima + row.to(tl.int64) * maxima_stride_b + q_head.to(tl.int64)[:, None] * maxima_stride_h,
                ranks + row.to(tl.int64) * ranks_stride_b,
                real_row & (length > budget),
                sinks,
                length - recent,
                (kv_head == 0) & (length > budget),
                SPAN,
            )
        logits = score * logits_scale
        if CAPPED:
            logits = soft_cap * (2 * tl.sigmoid(2 * logits) - 1)
        if Q_LEN == 1:
            logits = tl.where(inside[None, :], logits, float("-inf"))
        else:
            logits = tl.where(position[None, :] <= (length - Q_LEN + token)[:, None], logits, _HIDDEN)
        # [ROWS]
        new_highest = tl.maximum(highest, tl.max(logits, 1))
        weights = tl.exp2(logits - new_highest[:, None])  # [ROWS, BLOCK_N]
        decay = tl.exp2(highest - new_highest)
        total = total * decay + tl.sum(weights, 1)
        # [ROWS, D]
        values = as_dtype(values, queries.dtype)
        output = tl.dot(weights.to(values.dtype), values, output * decay[:, None], input_precision="ieee")
        highest = new_highest
    partial_row = _partial_row(row, split, kv_splits, token, q_head, num_heads, Q_LEN)
    tl.store(partial_lse + partial_row, highest + tl.log2(total), mask=real_row)
    wanted = real_row[:, None] & real_dim[None, :]
    tl.store(partial + partial_row[:, None] * HEAD_DIM + dim[None, :], output / total[:, None], mask=wanted)


@triton.jit(do_not_specialize=NUMBERS)
def merge_kernel(
    partial,
    partial_lse,
    kv_indptr,
    out,
    first_request,
    kv_splits,
    value_scale,
    num_heads,
    out_stride_b,
    out_stride_h,
    Q_LEN: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Merge one head's output from its splits. Grid: (heads, requests * Q_LEN)."""
    await_previous(CHAINED)
    head, row, token = tl.program_id(0), tl.program_id(1) // Q_LEN, tl.program_id(1) % Q_LEN
    request = (first_request + row).to(tl.int64)
    _, length = load_extent(kv_indptr, request)
    size = tl.maximum(_split_length(length, kv_splits, BLOCK_N), 1)
    split = tl.arange(0, MAX_SPLITS)  # [MAX_SPLITS]
    dim = tl.arange(0, HEAD_DIM_PAD)  # [D]
    used = split < tl.cdiv(length, size)
    partial_row = _partial_row(row, split, kv_splits, token, head, num_heads, Q_LEN)
    lse = tl.load(partial_lse + partial_row, mask=used, other=float("-inf"))
    weight = tl.where(used, tl.exp2(lse - tl.max(lse, 0)), 0.0)
    # [MAX_SPLITS, D]
    outputs = tl.load(
        partial + partial_row[:, None] * HEAD_DIM + dim[None, :],
        mask=used[:, None] & (dim < HEAD_DIM)[None, :],
        other=0.0,
    )
    total = tl.maximum(tl.sum(weight, 0), 1e-30)  # a request without tokens gets zeros
    merged = tl.sum(weight[:, None] * outputs, 0) / total * value_scale
    out_row = out + (request * Q_LEN + token) * out_stride_b + head.to(tl.int64) * out_stride_h
    tl.store(out_row + dim, merged, mask=dim < HEAD_DIM)
