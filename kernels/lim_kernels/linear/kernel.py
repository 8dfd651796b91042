"""The product of few rows with an int8 weight, which takes as long as the weight's bytes do."""

from __future__ import annotations

import triton
import triton.language as tl

from lim_kernels.chain import await_previous


@triton.jit(do_not_specialize=["num_rows"])
def int8_linear_kernel(
    x,  # [M, K] bfloat16, float16 or float32
    codes,  # [N, K] int8
    scales,  # [N] as x
    out,  # [M, N] as x
    partial,  # [tiles, SPLITS, BLOCK_M, BLOCK_N] float32
    arrived,  # [tiles] int32, zeros between launches
    num_rows,  # M
    N,
    K: tl.constexpr,
    SPLITS: tl.constexpr,  # programs that share a tile's columns of K
    BLOCK_M: tl.constexpr,  # at least M
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """One tile of the output, [M, BLOCK_N]; of the programs that share it the last one adds up, in their order."""
    tile, split = tl.program_id(0), tl.program_id(1)
    row = tl.arange(0, BLOCK_M)
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    SHARE: tl.constexpr = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLITS) * BLOCK_K
    begin = split * SHARE
    end = tl.minimum(begin + SHARE, K)
    x_rows = x + row[:, None] * K + k[None, :]
    is_row = (row < num_rows)[:, None]
    code_rows = codes + (column % N)[:, None].to(tl.int64) * K + k[None, :]
    await_previous(CHAINED)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        if K % BLOCK_K == 0:
            weight = tl.load(code_rows + first, eviction_policy="evict_first")
            inputs = tl.load(x_rows + first, mask=is_row, other=0)
        else:
            inside = (first + k < K)[None, :]
            weight = tl.load(code_rows + first, mask=inside, other=0, eviction_policy="evict_first")
            inputs = tl.load(x_rows + first, mask=is_row & inside, other=0)
        weight = weight.to(tl.float32).to(inputs.dtype)  # exact; the interpreter has no int8 to bfloat16
        sums = tl.dot(inputs, weight.T, sums, input_precision="ieee")
    if SPLITS > 1:
        parts = partial + (tile * SPLITS * BLOCK_M + row[:, None]) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        tl.store(parts + split * BLOCK_M * BLOCK_N, sums)
        tl.debug_barrier()  # all of this program's sums are written before its arrival is
        if tl.atomic_add(arrived + tile, 1, sem="acq_rel") < SPLITS - 1:
            return
        tl.debug_barrier()
        sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for other in tl.static_range(SPLITS):
            sums += tl.load(parts + other * BLOCK_M * BLOCK_N, cache_modifier=".cg")
        tl.store(arrived + tile, 0)
    scale = tl.load(scales + column, mask=column < N, other=0).to(tl.float32)
    tl.store(out + row[:, None] * N + column[None, :], sums * scale[None, :], mask=is_row & (column < N)[None, :])
