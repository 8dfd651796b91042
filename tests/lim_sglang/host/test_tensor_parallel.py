"""Heads over ranks: their attention groups, which rank speaks and counts for the others, and costs they agree on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lim_sglang.host import compat, ranks
from lim_sglang.host.launch import check_launch

from .conftest import Launch
from .tiny_llama import LLAMA

HEADS = {"hidden_size": 96, "num_attention_heads": 12, "num_key_value_heads": 4}


@pytest.mark.parametrize(
    ("options", "groups"),
    [
        ({"tp_size": 4}, 1),
        ({"tp_size": 4, "dp_size": 2, "enable_dp_attention": True}, 2),
        ({"tp_size": 2, "dp_size": 2}, 1),
    ],
    ids=["tensor parallel", "two groups", "replicas"],
)
def test_groups_are_those_that_sglang_resolves(launch: Launch, options: dict[str, Any], groups: int) -> None:
    """By both spellings: SGLang 0.5.23 resolves the old one to ``attn_dp_size``."""
    server_args = launch(HEADS, **options)
    assert ranks.attention_groups(compat.effective_args(server_args)) == groups
    check_launch(server_args)


RANKS = """
import os, sys, torch
from types import SimpleNamespace
from sglang.srt.distributed.parallel_state import init_distributed_environment, initialize_model_parallel
from sglang.srt import runtime_context
from lim_sglang.config import LimConfig
from lim_sglang.host import ranks
from lim_sglang.layer_plan import LayerPlan
from lim_sglang.metrics import DecodeMetrics
from lim_sglang.speculative import costs

before = ranks.is_first_rank(), ranks.counts_for_its_group()
rank = next((rank for rank in range(1, 4) if not os.fork()), 0)
method = "file://" + sys.argv[1]
sizes = {"tensor_model_parallel_size": 4, "attention_data_parallel_size": 2}
if hasattr(runtime_context, "publish"):  # SGLang 0.5.23
    from sglang.srt.server_args import ServerArgs

    args = ServerArgs(model_path=sys.argv[2], device="cpu", load_format="dummy", tp_size=4, attn_dp_size=2)
    args.resolve_once()
    runtime_context.publish(args, role="scheduler", ranks=runtime_context.SpawnRanks(world_rank=rank))
    sizes = {}
init_distributed_environment(4, rank, method, rank, "gloo")
initialize_model_parallel(**sizes, backend="gloo")
costs.Trial.milliseconds = lambda trial, run: 5.0 + rank
plan, keys = LayerPlan.from_select_layers(3, (1,)), torch.zeros(8, 1, 1)
kind = SimpleNamespace(attention=SimpleNamespace(plan=plan, metrics=DecodeMetrics(LimConfig(), plan)))
kind.runner = SimpleNamespace(
    req_to_token_pool=SimpleNamespace(req_to_token=torch.zeros(2, 64, dtype=torch.int32)),
    token_to_kv_pool=SimpleNamespace(get_key_buffer=lambda layer: keys),
    model_config=SimpleNamespace(context_len=64),
    max_total_num_tokens=64,
)
agreed = costs.measure_costs(kind, kind, 5)
times = {time.at(1, 7) for time in (agreed.dense, agreed.draft, agreed.verify)}
said = f"rank {rank}: {before} {ranks.is_first_rank()} {ranks.counts_for_its_group()} {times}\\n"
os.write(1, said.encode())
torch.distributed.barrier()
os._exit(0) if rank else [os.wait() for _ in range(3)]
"""


def test_one_rank_speaks_the_first_of_each_group_counts_and_all_have_its_costs(tmp_path: Path) -> None:
    """Four ranks in two attention groups, in SGLang's own process groups; without any, a process stands alone.

    A step takes each rank another time.
    """
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    command = [sys.executable, "-c", RANKS, str(tmp_path / "store"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("rank ")) == [
        "rank 0: (True, True) True True {5.0}",
        "rank 1: (True, True) False False {5.0}",
        "rank 2: (True, True) False True {5.0}",
        "rank 3: (True, True) False False {5.0}",
    ], done.stderr[-3000:]
