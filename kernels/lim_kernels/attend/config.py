"""Constants of attention's launches, and which of them fit on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
import triton

from lim_kernels.gpu import Gpu

MOST_ROWS, MOST_OUTPUTS = 64, 64 * 128  # of a program with several query tokens: registers of four warps hold them
RESERVE = 512  # bytes of shared memory beside tiles, queries and scores
SMALLEST_TILE = 16  # tokens: what tl.dot takes, and a SELECT layer's span


@dataclass(frozen=True)
class AttendConfig:
    """Constants of the launches; results depend on them by rounding only.

    The defaults are for a SELECT layer; ``select.launch.LaunchConfig`` says how they were measured.

    Attributes:
        block_n: tokens per tile.
        warps, stages: of a program; ``stages`` steps of the loop over tiles are in flight.
        programs: number of programs that a launch aims for over all requests and KV heads.
        min_splits, max_splits: bounds on ``kv_splits``; ``max_splits`` is a power of two.
    """

    block_n: int = 64
    warps: int = 2
    stages: int = 2
    programs: int = 1056
    min_splits: int = 8
    max_splits: int = 64

    def kv_splits(self, requests: int, num_kv_heads: int) -> int:
        """Parts that every request's keys are split into; the host need not know the requests' lengths."""
        return min(self.max_splits, max(self.min_splits, self.programs // (requests * num_kv_heads)))


class HeadShape(NamedTuple):
    """Sizes that decide how much memory a tile takes: heads, dtypes of queries and cache, query tokens per request."""

    head_dim: int
    group: int
    q_dtype: torch.dtype
    kv_dtype: torch.dtype
    q_len: int = 1

    @property
    def head_dim_pad(self) -> int:
        """Head size as the kernel pads it."""
        return triton.next_power_of_2(self.head_dim)

    @property
    def q_blocks(self) -> int:
        """Programs that share a request's query tokens, each of which reads every key: one if its rows are few."""
        most = min(MOST_ROWS, MOST_OUTPUTS // self.head_dim_pad) // self.group
        return triton.cdiv(self.q_len, max(1, most))

    @property
    def q_tile(self) -> int:
        """Query tokens of a program."""
        return triton.cdiv(self.q_len, self.q_blocks)

    @property
    def rows_pad(self) -> int:
        """Query heads of a KV head, for every token of a program, as the kernel pads them."""
        return max(16, triton.next_power_of_2(self.group * self.q_tile))

    def shared_bytes(self, config: AttendConfig) -> int:
        """Shared memory of one block, in bytes: at least what the compiler takes, and little more.

        Tiles of keys and values that are in flight, the queries, and scores on their way from one layout to another.
        Where a warp group multiplies, queries and a tile in their dtype are there once more.
        """
        tiles = 1 if config.stages == 1 else 2 * ((config.stages + 3) // 4)  # slots come first, a step ahead
        in_flight = tiles * config.block_n * self.head_dim_pad * self.kv_dtype.itemsize
        queries = self.rows_pad * self.head_dim_pad * self.q_dtype.itemsize
        scores = self.rows_pad * config.block_n * 4
        if self.rows_pad >= 64 and config.warps >= 4:
            tile = config.block_n * self.head_dim_pad * self.q_dtype.itemsize
            return in_flight + 2 * queries + max(tile, scores) + RESERVE
        return in_flight + queries + scores + RESERVE


def verify_config(heads: HeadShape) -> AttendConfig:
    """Constants for several query tokens per request, by a program's rows, from ``bench.speed.verify_attention``.

    With 32 rows a tile takes long enough that the next one has to be on its way; two programs fit a multiprocessor.
    More rows take more registers, and leave none for large tiles.
    """
    if heads.rows_pad == 32:
        return AttendConfig(block_n=64, warps=4, stages=5, programs=264, min_splits=4)
    return AttendConfig(block_n=64 if heads.rows_pad == 16 else 32, warps=4, programs=528, min_splits=4)


@lru_cache
def fit_config(config: AttendConfig, heads: HeadShape, gpu: Gpu) -> AttendConfig:
    """``config`` where it fits on the GPU, otherwise with fewer stages, then with smaller tiles.

    Raises:
        ValueError: one line; nothing fits.
    """
    for candidate in _candidates(config):
        needed = heads.shared_bytes(candidate)
        if needed <= gpu.shared_bytes:
            return candidate
    major, minor = gpu.capability
    raise ValueError(
        f"head size {heads.head_dim} with {heads.group} query heads per KV head: needs {needed} bytes of shared "
        f"memory per block, and this GPU of compute capability {major}.{minor} has {gpu.shared_bytes}"
    )


def _candidates(config: AttendConfig) -> Iterator[AttendConfig]:
    """Configurations to try, from the one asked for to the smallest there is."""
    block_n = config.block_n
    while block_n >= SMALLEST_TILE:
        yield replace(config, block_n=block_n)
        yield replace(config, block_n=block_n, stages=min(config.stages, 2))
        block_n //= 2
    yield replace(config, block_n=SMALLEST_TILE, stages=1)
