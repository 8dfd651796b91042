"""Heads on several GPUs of one host: every GPU ends with the set of all heads, eager and captured, ties included."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lim_kernels.select.shard import HeadShard

from .test_select_kernels import Case

SEEDS = 120
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs"),
    pytest.mark.timeout(1800),
]


def case_of(seed: int, devices: int) -> Case:
    """Small integers, most of whose scores tie; few variants of the attention, which is tested elsewhere."""
    draw = random.Random(seed)
    kv_heads = draw.choice([1, 2, 4])
    budget = draw.choice([1, 7, 64, 250, 1024, 2048])
    longest = draw.choice([budget + 1, 2 * budget + 3, 20_000])
    edges = [1, budget, budget + 1, max(1, budget - 1)]
    return Case(
        lengths=[draw.choice([*edges, draw.randint(1, longest)]) for _ in range(draw.randint(1, 6))],
        heads=4 * kv_heads * devices,
        kv_heads=kv_heads * draw.choice([1, devices]),
        head_dim=64,
        budget=budget,
        recency_ratio=draw.choice([0.0, 0.25, 0.5, 1.0]),
        sinks=draw.choice([0, 1, 4]),
        dtype=torch.bfloat16,
        integers=draw.random() < 0.8,
        rows=draw.choice([None, 2]),
        seed=seed,
    )


def capture(run: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """Run once, capture, and replay twice; the graph."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    graph.replay()
    torch.cuda.synchronize()
    return graph


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
        eager, replayed = part.run(shard)[0], part.run(shard, capture)[0]
        # Without integers scores are rounded as the kernels sum, so one device's kernels say what is expected.
        expected = case.expected() if case.integers else case.run()[0]
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
