"""Attention of one decode step at kernel level: dense FlashInfer, every stage of lim, and all layers together.

    python -m bench.speed.decode_attention --shapes 8x32768 16x16384 1x32768
    python -m bench.speed.decode_attention --grid

Random-normal q, K and V of Qwen3-8B's shape (36 layers, 32 query and 8 KV heads, head 128, bf16), slots in random
order, each stage captured in a CUDA graph and replayed over several layers' caches so that no layer finds its keys in
L2. Before a shape is timed, attention is compared with FlashInfer's and token sets with the reference; what is wrong
gets no speed.

Byte bound: K and V read by dense and select layers (n tokens) and by sparse layers (K tokens), over the bandwidth of a
copy by a kernel, measured in the same run. ``select_beyond_dense``: what a SELECT layer costs on top of its own dense
attention, as a share of it. ``lim_us`` and ``step_dense_us`` are whole steps, each one graph of 36 layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from bench import driver
from bench.speed.arms import shape_of
from bench.speed.attention_problem import DENSE_LAYERS, LAYERS, SELECT_LAYERS, TOKEN_BYTES, Problem
from bench.timing import copy_tb_s, graph_us, layer_us

STAGES = ["dense", "dense_fa3", "select", "attend", "shortlist", "emit", "finish", "sparse", "sparse_triton"]
COLUMNS = [
    *("gpu", "batch", "context", "budget", "dense_us", "lim_us", "speedup", "selection_share", "byte_bound_share"),
    *("select_beyond_dense", "unfinished", "step_dense_us", "step_spread_us"),
    *(f"{stage}_us" for stage in STAGES if stage != "dense"),
    *("dense_tb_s", "select_tb_s", "sparse_tb_s", "copy_tb_s"),
]
FREE_SHARE = 0.75  # of the device's memory, for the caches
GRID = [(batch, context) for batch in (1, 8, 16, 64) for context in (2048, 8192, 16384, 32768, 65536, 131072)]
Row = dict[str, Any]


def measure_shape(batch: int, context: int, budgets: Sequence[int], copy: float) -> Iterator[Row]:
    """A row per budget; dense attention is timed once."""
    problem = Problem(batch, context, budgets)
    dense_us = {name: layer_us(run) for name, run in problem.dense_stages().items()}
    step_dense, _ = graph_us(lambda: problem.step(lim=False))
    for budget in budgets:
        problem.use(budget)
        row: Row = {
            "gpu": torch.cuda.get_device_name(),
            "batch": batch,
            "context": context,
            "budget": budget,
            "copy_tb_s": round(copy, 3),
        }
        wrong = problem.problem_with_kernels()
        yield row | ({"speedup": wrong} if wrong else measure(problem, budget, dense_us, step_dense, copy))


def measure(problem: Problem, budget: int, dense_us: dict[str, float], step_dense: float, copy: float) -> Row:
    """Times of all stages and of a step at one budget, and what follows from them."""
    batch, context = problem.batch, problem.context
    us = dense_us | {name: layer_us(run) for name, run in problem.stages().items()}
    step, spread = graph_us(lambda: problem.step(lim=True))
    full_layers = len(DENSE_LAYERS) + len(SELECT_LAYERS)
    kept = min(context, budget)
    bound = batch * TOKEN_BYTES * (full_layers * context + (LAYERS - full_layers) * kept) / copy / 1e6
    selection = len(SELECT_LAYERS) * (us["select"] - us["dense"])
    sparse = us.get("sparse_triton", us["sparse"])
    return {
        **{f"{name}_us": round(value, 2) for name, value in us.items()},
        "unfinished": problem.unfinished() if context > budget else "",
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


def main() -> None:
    parser = driver.parser(__doc__)
    shapes = [(8, 32768), (16, 16384), (1, 32768), (16, 1500)]
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=shapes, help="batch x tokens")
    parser.add_argument("--grid", action="store_true", help="all of 1x2048 to 64x131072 that fit")
    parser.add_argument("--budgets", nargs="+", type=int, default=[2048])
    driver.add_out(parser)
    args = parser.parse_args()
    driver.require_gpu(parser)
    copy = copy_tb_s()
    driver.write_json(args.out / "decode_attention.json", copy_tb_s=copy)
    asked = GRID if args.grid else args.shapes
    free = FREE_SHARE * torch.cuda.get_device_properties(0).total_memory
    least = min(args.budgets)
    shapes = [(batch, context) for batch, context in asked if Problem.nbytes(batch, context, least) < free]
    with driver.row_writer(args.out / "decode_attention.csv", COLUMNS) as add:
        for number, shape in enumerate(shapes, 1):
            for row in measure_shape(*shape, args.budgets, copy):
                add(row)
                print(f"[{number}/{len(shapes)}]", driver.pairs(row), flush=True)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
