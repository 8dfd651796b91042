"""The Triton kernels compile for every GPU that is served, also on a machine that has none of them, and fit on it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import triton

from lim_kernels.attend.config import RESERVE, AttendConfig, HeadShape, fit_config, verify_config
from lim_kernels.gpu import Gpu
from lim_kernels.select.launch import LaunchConfig

MATRIX = Path(__file__).with_name("compile_matrix.py")
LIMITS = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
KERNELS = {
    *("attend_kernel", "merge_kernel", "sparse_indptr_kernel", "slots_kernel", "shortlist_kernel"),
    *("emit_kernel", "full_rank_kernel", "full_emit_kernel"),
    *("offer_kernel", "full_offer_kernel", "join_kernel"),
}
SPARSE = AttendConfig(block_n=32, warps=4, stages=5, programs=264, min_splits=1)
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn

pytestmark = pytest.mark.timeout(1800)
Record = dict[str, Any]


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """What the launchers ask for, compiled for all targets, in a process whose kernels are not interpreted."""
    command = [sys.executable, str(MATRIX), *map(str, LIMITS), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("target", LIMITS)
def test_every_variant_compiles_and_fits(records: list[Record], target: int) -> None:
    mine = [record for record in records if record["target"] == target]
    assert {record["kernel"] for record in mine} == KERNELS
    assert [(record["kernel"], record["variant"], record["error"]) for record in mine if record["error"]] == []
    assert {record["kernel"] for record in mine if record["cubin"]} == KERNELS, "each is assembled once at least"
    assert all(record["cubin"] for record in mine if record["kernel"] == "attend_kernel")
    too_large = [record for record in mine if record["shared"] > LIMITS[target]]
    assert too_large == []


@pytest.mark.parametrize("target", LIMITS)
def test_shared_memory_is_foreseen(records: list[Record], target: int) -> None:
    """What decides on a launch's tiles is never less than what the compiler takes, and at most twice as much."""
    attention = [record for record in records if record["target"] == target and record["kernel"] == "attend_kernel"]
    assert len(attention) > 6
    assert [record for record in attention if record["foreseen"] < record["shared"]] == []
    assert [record for record in attention if record["foreseen"] - RESERVE > 2 * record["shared"]] == []


@pytest.mark.parametrize("target", [80, 86])
def test_decoded_bytes_keep_their_subnormals(records: list[Record], target: int) -> None:
    """The decoder multiplies float32 subnormals: a compiler that flushes them would make small keys and values zero."""
    decoding = [record for record in records if record["target"] == target and "kv float8" in record["variant"]]
    assert len(decoding) > 1
    assert not any(record["flushes"] for record in decoding)


def test_the_variants_cover_every_pair(records: list[Record]) -> None:
    """Any two values of two columns meet in a variant, where sizes count as what the kernel pads them to."""
    layers = [record["layer"] for record in records if record["target"] == 90 and record["layer"]]
    padded = [
        (kind, triton.next_power_of_2(dim), max(16, triton.next_power_of_2(group)), q, q == kv, capped)
        for kind, dim, group, q, kv, capped, _q_len in layers
        if kind in ("select", "sparse")
    ]
    columns = list(zip(*padded, strict=True))
    values = (
        {"select", "sparse"},
        {64, 128, 256},
        {16, 32, 64},
        {"torch.bfloat16", "torch.float16"},
        *[{True, False}] * 2,
    )
    assert tuple(map(set, columns)) == values
    for first, second in itertools.combinations(columns, 2):
        assert set(itertools.product(first, second)) == set(zip(first, second, strict=True))
    assert {dim for _, dim, *_ in layers} == {64, 80, 96, 112, 128, 192, 256}


def test_verification_of_2_to_13_tokens_compiles(records: list[Record]) -> None:
    """That all of them compile and fit is tested above."""
    layers = [record["layer"] for record in records if record["target"] == 90 and record["layer"]]
    assert [layer[-1] for layer in layers if layer[0] == "verify"] == [*range(2, 14)]


USUAL = [
    HeadShape(head_dim, group, BF16, kv_dtype)
    for head_dim, group, kv_dtype in itertools.product((64, 80, 96, 128), (1, 4, 8, 16, 32), (BF16, FP8))
]


@pytest.mark.parametrize("target", LIMITS)
@pytest.mark.parametrize("config", [LaunchConfig().attend, SPARSE], ids=["select", "sparse"])
def test_measured_constants_stay_where_they_fit(target: int, config: AttendConfig) -> None:
    gpu = Gpu(divmod(target, 10), LIMITS[target])
    larger = [heads._replace(head_dim=256) for heads in USUAL] if gpu.shared_bytes > 160 << 10 else []
    assert [heads for heads in USUAL + larger if fit_config(config, heads, gpu) != config] == []


@pytest.mark.parametrize(
    ("heads", "config", "tiles"),
    [
        (HeadShape(256, 64, BF16, BF16), LaunchConfig().attend, (32, 2)),
        (HeadShape(256, 64, BF16, BF16), SPARSE, (16, 2)),
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
        fit_config(SPARSE, heads, gpu)
        for q_len in range(2, 17):
            verifying = heads._replace(q_len=q_len)
            config = verify_config(verifying)
            assert fit_config(config, verifying, gpu) == config or heads.head_dim == 256
            assert (verifying.q_blocks - 1) * verifying.q_tile < q_len <= verifying.q_blocks * verifying.q_tile
            assert verifying.rows_pad <= max(64, heads.rows_pad)


def test_heads_that_fit_nowhere_get_one_line() -> None:
    with pytest.raises(ValueError, match="head size 512 with 128 query heads per KV head") as caught:
        fit_config(LaunchConfig().attend, HeadShape(512, 128, BF16, BF16), Gpu((8, 6), LIMITS[86]))
    assert "needs 156160 bytes of shared memory per block, and this GPU of compute capability 8.6 has 101376" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)
