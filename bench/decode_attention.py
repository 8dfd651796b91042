"""Attention of one decode step at kernel level: dense FlashInfer, every stage of lim, and all layers together.

    python bench/decode_attention.py --shapes 8x32768 16x16384 1x32768
    python bench/decode_attention.py --grid

Random-normal q, K and V of Qwen3-8B's shape (36 layers, 32 query and 8 KV heads, head 128, bf16), slots in random
order, each stage captured in a CUDA graph and replayed over several layers' caches so that no layer finds its keys in
L2. Before a shape is timed, attention is compared with FlashInfer's and token sets with the reference; what is wrong
gets no speed.

Byte bound: K and V read by dense and select layers (n tokens) and by sparse layers (K tokens), over the bandwidth of a
copy by a kernel, measured in the same run. ``select_beyond_dense``: what a SELECT layer costs on top of its own dense
attention, as a share of it. ``lim_us`` and ``step_dense_us`` are whole steps, each one graph of 36 layers.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import torch
from attention_problem import DENSE_LAYERS, LAYERS, SELECT_LAYERS, TOKEN_BYTES, Problem
from timing import about, copy_tb_s, graph_us, layer_us

STAGES = ["dense", "dense_fa3", "select", "attend", "shortlist", "emit", "finish", "sparse", "sparse_triton"]
COLUMNS = [
    "gpu",
    "batch",
    "context",
    "budget",
    "dense_us",
    "lim_us",
    "speedup",
    "selection_share",
    "byte_bound_share",
    "select_beyond_dense",
    "unfinished",
    "step_dense_us",
    "step_spread_us",
    *(f"{stage}_us" for stage in STAGES if stage != "dense"),
    "dense_tb_s",
    "select_tb_s",
    "sparse_tb_s",
    "copy_tb_s",
]
FREE_SHARE = 0.75  # of the device's memory, for the caches
GRID = [f"{batch}x{context}" for batch in (1, 8, 16, 64) for context in (2048, 8192, 16384, 32768, 65536, 131072)]


def measure(batch: int, context: int, budget: int, copy: float) -> dict[str, Any]:
    problem = Problem(batch, context, budget)
    row: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "batch": batch,
        "context": context,
        "budget": budget,
        "copy_tb_s": round(copy, 3),
    }
    wrong = problem.problem_with_kernels()
    if wrong:
        return row | {"speedup": wrong}
    if context > budget:
        row["unfinished"] = int(problem.buffers.select.unfinished.sum())
    us = {name: layer_us(run) for name, run in problem.stages().items()}
    step_dense, _ = graph_us(lambda: problem.step(lim=False))
    step, spread = graph_us(lambda: problem.step(lim=True))
    full_layers = len(DENSE_LAYERS) + len(SELECT_LAYERS)
    kept = min(context, budget)
    bound = batch * TOKEN_BYTES * (full_layers * context + (LAYERS - full_layers) * kept) / copy / 1e6
    selection = len(SELECT_LAYERS) * (us["select"] - us["dense"])
    sparse = us.get("sparse_triton", us["sparse"])
    row |= {f"{name}_us": round(value, 2) for name, value in us.items()}
    return row | {
        "lim_us": round(step, 1),
        "step_dense_us": round(step_dense, 1),
        "step_spread_us": round(spread, 1),
        "speedup": round(step_dense / step, 3),
        "selection_share": round(selection / step, 3),
        "select_beyond_dense": round(us["select"] / us["dense"] - 1, 3),
        "byte_bound_share": round(bound / step, 3),
        "dense_tb_s": round(batch * TOKEN_BYTES * context / us["dense"] / 1e6, 2),
        "select_tb_s": round(batch * TOKEN_BYTES * context / us["select"] / 1e6, 2),
        "sparse_tb_s": round(batch * TOKEN_BYTES * kept / sparse / 1e6, 2),
    }


def fits(batch: int, context: int, budget: int) -> bool:
    return Problem.nbytes(batch, context, budget) < FREE_SHARE * torch.cuda.get_device_properties(0).total_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["8x32768", "16x16384", "1x32768", "16x1500"])
    parser.add_argument("--grid", action="store_true", help=f"all of {GRID[0]} to {GRID[-1]} that fit")
    parser.add_argument("--budgets", nargs="+", type=int, default=[2048])
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    copy = copy_tb_s()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "decode_attention.json").write_text(json.dumps({"about": about(), "copy_tb_s": copy}, indent=1) + "\n")
    shapes = [tuple(map(int, shape.split("x"))) for shape in (GRID if args.grid else args.shapes)]
    cases = [(*shape, budget) for shape in shapes for budget in args.budgets if fits(*shape, budget)]
    with (args.out / "decode_attention.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for number, case in enumerate(cases, 1):
            row = measure(*case, copy)
            writer.writerow(row)
            file.flush()
            print(f"[{number}/{len(cases)}]", "  ".join(f"{name}={value}" for name, value in row.items()), flush=True)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
