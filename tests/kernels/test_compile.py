"""The Triton kernels compile for every GPU that is served, also on a machine that has none of them, and fit on it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lim_kernels.attend.config import RESERVE, AttendConfig, HeadShape, fit_config, verify_config
from lim_kernels.gpu import Gpu
from lim_kernels.select.launch import LaunchConfig
from lim_sglang.attention.buffers import SPARSE_LAUNCH

from .compile_matrix import BF16, FP8, LIMITS

KERNELS = {
    *("attend_kernel", "merge_kernel", "sparse_indptr_kernel", "slots_kernel", "shortlist_kernel"),
    *("emit_kernel", "full_rank_kernel", "full_emit_kernel"),
    *("offer_kernel", "full_offer_kernel", "join_kernel", "int8_linear_kernel"),
}

pytestmark = pytest.mark.timeout(900)
Record = dict[str, Any]


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """What the launchers ask for, compiled for all targets, in a process whose kernels are not interpreted."""
    command = [sys.executable, str(Path(__file__).with_name("compile_matrix.py")), *map(str, LIMITS)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=900)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("target", LIMITS)
def test_every_variant_compiles_and_fits(records: list[Record], target: int) -> None:
    """What decides on a launch's tiles is never less than what the compiler takes, and at most twice as much."""
    mine = [record for record in records if record["target"] == target]
    assert {record["kernel"] for record in mine} == KERNELS
    assert [record for record in mine if "error" in record] == []
    assert [record for record in mine if record["shared"] > LIMITS[target]] == []
    attention = [record for record in mine if record["kernel"] == "attend_kernel"]
    assert [record for record in attention if record["foreseen"] < record["shared"]] == []
    assert [record for record in attention if record["foreseen"] - RESERVE > 2 * record["shared"]] == []


@pytest.mark.parametrize("target", [80, 86])
def test_decoded_bytes_keep_their_subnormals(records: list[Record], target: int) -> None:
    """The decoder multiplies float32 subnormals: a compiler that flushes them would make small keys and values zero."""
    decoding = [
        record for record in records if record["target"] == target and "kv_dtype=torch.float8" in record["variant"]
    ]
    assert decoding
    assert not any(record["flushes"] for record in decoding)


USUAL = [
    HeadShape(head_dim, group, BF16, kv_dtype)
    for head_dim, group, kv_dtype in itertools.product((64, 80, 96, 128), (1, 4, 8, 16, 32), (BF16, FP8))
]


@pytest.mark.parametrize("target", LIMITS)
@pytest.mark.parametrize("config", [LaunchConfig().attend, SPARSE_LAUNCH], ids=["select", "sparse"])
def test_measured_constants_stay_where_they_fit(target: int, config: AttendConfig) -> None:
    gpu = Gpu(divmod(target, 10), LIMITS[target])
    larger = [heads._replace(head_dim=256) for heads in USUAL] if gpu.shared_bytes > 160 << 10 else []
    assert [heads for heads in USUAL + larger if fit_config(config, heads, gpu) != config] == []


@pytest.mark.parametrize(
    ("heads", "config", "tiles"),
    [
        (HeadShape(256, 64, BF16, BF16), LaunchConfig().attend, (32, 2)),
        (HeadShape(256, 64, BF16, BF16), SPARSE_LAUNCH, (16, 2)),
        (HeadShape(512, 1, BF16, BF16), LaunchConfig().attend, (32, 2)),
        (HeadShape(512, 64, BF16, BF16), LaunchConfig().attend, (16, 1)),
    ],
    ids=str,
)
def test_large_heads_get_smaller_tiles(heads: HeadShape, config: AttendConfig, tiles: tuple[int, int]) -> None:
    chosen = fit_config(config, heads, Gpu((8, 6), LIMITS[86]))
    assert (chosen.block_n, chosen.stages) == tiles
    assert heads.shared_bytes(chosen) <= LIMITS[86]
    assert chosen.kv_splits(3, 2) == config.kv_splits(3, 2), "workspaces are made for the constants asked for"


@pytest.mark.parametrize("target", LIMITS)
def test_verification_fits_where_decode_does(target: int) -> None:
    """However many tokens: programs share them before one has too many rows, and up to 128 the constants stay."""
    gpu = Gpu(divmod(target, 10), LIMITS[target])
    for heads in USUAL + [heads._replace(head_dim=256) for heads in USUAL]:
        fit_config(SPARSE_LAUNCH, heads, gpu)
        for q_len in range(2, 17):
            verifying = heads._replace(q_len=q_len)
            config = verify_config(verifying)
            assert fit_config(config, verifying, gpu) == config or heads.head_dim == 256
            assert (verifying.q_blocks - 1) * verifying.q_tile < q_len <= verifying.q_blocks * verifying.q_tile
            assert verifying.rows_pad <= max(64, heads.rows_pad)
