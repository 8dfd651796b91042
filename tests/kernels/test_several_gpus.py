"""Heads on several GPUs of one host: every GPU ends with the set of all heads, eager and captured, ties included."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lim_kernels.select.shard import HeadShard

from .cases import SelectCase, capture, random_case

SEEDS = 120
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs"),
    pytest.mark.timeout(1800),
]


def case_of(seed: int, devices: int) -> SelectCase:
    """Few variants of the attention, which is tested elsewhere."""
    draw, case = random.Random(seed), random_case(seed)
    return replace(
        case,
        heads=4 * case.kv_heads * devices,
        kv_heads=case.kv_heads * draw.choice([1, devices]),
        head_dim=64,
        dtype=torch.bfloat16,
        k_dtype=None,
        integers=draw.random() < 0.8,
    )


def work(rank: int, devices: int, folder: Path) -> None:
    """One GPU's part: what went wrong, by seed."""
    from torch import distributed

    torch.cuda.set_device(rank)
    distributed.init_process_group("nccl", init_method=f"file://{folder}/store", rank=rank, world_size=devices)

    def all_gather(out: torch.Tensor, offered: torch.Tensor) -> None:
        distributed.all_gather_into_tensor(out.flatten(0, 1), offered)

    wrong = {}
    for seed in range(SEEDS):
        case = case_of(seed, devices)
        shard = HeadShard(case.heads, rank * case.heads // devices, devices, all_gather)
        part = case.of_shard(shard)
        eager, replayed = part.select(shard)[0], part.select(shard, capture)[0]
        # Without integers scores are rounded as the kernels sum, so one device's kernels say what is expected.
        expected = case.expected_sets() if case.integers else case.select()[0]
        if not eager == replayed == expected:
            wrong[seed] = [eager == expected, replayed == expected]
    (folder / f"{rank}.json").write_text(json.dumps(wrong))
    distributed.destroy_process_group()


def test_every_gpu_has_the_set_of_one(tmp_path: Path) -> None:
    devices = torch.cuda.device_count()
    command = [sys.executable, "-m", __name__, str(devices), str(tmp_path)]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    }
    workers = [subprocess.Popen([*command, str(rank)], env=env) for rank in range(devices)]
    assert [worker.wait(timeout=1700) for worker in workers] == [0] * devices
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(devices)] == [{}] * devices


if __name__ == "__main__":
    work(int(sys.argv[3]), int(sys.argv[1]), Path(sys.argv[2]))
