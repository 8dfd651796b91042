"""Attention of one decode step at kernel level: dense FlashInfer, every stage of lim, and all layers together.

    python bench/decode_attention.py --shapes 8x32768 16x16384 1x32768

Random-normal q and K of Qwen3-8B's shape (36 layers, 32 query and 8 KV heads, head 128, bf16), slots in random order,
each stage captured in a CUDA graph and replayed over several layers' caches so that no layer finds its keys in L2.
Before a shape is timed, its token sets are compared with the reference; a wrong set gets no speed.

Byte bound: K and V read by dense and select layers (n tokens) and by sparse layers (K tokens), over the bandwidth of a
copy by a kernel (a graph would turn a plain copy into a slower memcpy node), measured in the same run.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flashinfer
import torch
from torch import Tensor

from lim_kernels.select import head_scores, select_token_set, split_budget
from lim_kernels.select.launch import (
    LaunchConfig,
    Round,
    SelectWorkspace,
    SlotIndex,
    rounds,
    select_slots,
    write_sparse_indptr,
)

HEADS, KV_HEADS, HEAD_DIM, LAYERS, DENSE_LAYERS, SELECT_LAYERS = 32, 8, 128, 36, 2, 2
TOKEN_BYTES = 2 * KV_HEADS * HEAD_DIM * 2
CACHES = 3
COLUMNS = [
    "gpu",
    "batch",
    "context",
    "budget",
    "dense_us",
    "sparse_us",
    "score_us",
    "shortlist_us",
    "emit_us",
    "finish_us",
    "unfinished",
    "select_us",
    "select_over_dense",
    "step_dense_us",
    "lim_us",
    "speedup",
    "selection_share",
    "byte_bound_share",
    "dense_tb_s",
    "sparse_tb_s",
    "copy_tb_s",
]


@dataclass
class Problem:
    """Caches, queries and index buffers of one shape."""

    batch: int
    context: int
    budget: int

    def __post_init__(self) -> None:
        torch.manual_seed(self.batch * self.context)
        slots = self.batch * self.context
        shape = (slots, KV_HEADS, HEAD_DIM)
        self.caches = [
            tuple(torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in "kv") for _ in range(CACHES)
        ]
        self.q = torch.randn(self.batch, HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
        self.kv_indices = torch.randperm(slots, device="cuda").int()
        self.kv_indptr = (torch.arange(self.batch + 1, device="cuda") * self.context).int()
        self.split = split_budget(self.budget, 0.25, 4)
        self.sparse_indptr = torch.zeros(self.batch + 1, dtype=torch.int32, device="cuda")
        self.sparse_indices = torch.zeros(self.batch * self.budget, dtype=torch.int32, device="cuda")
        self.workspace = SelectWorkspace.allocate(self.batch, self.context, HEADS, self.split, "cuda", 1 << 31)
        write_sparse_indptr(self.kv_indptr, self.sparse_indptr, self.batch, self.budget)
        float_workspace = torch.zeros(512 << 20, dtype=torch.uint8, device="cuda")
        self.dense = self.planned(float_workspace, self.kv_indptr, self.kv_indices)
        self.sparse = self.planned(float_workspace, self.sparse_indptr, self.sparse_indices)

    def planned(self, workspace: Tensor, indptr: Tensor, indices: Tensor) -> Any:
        ones = torch.ones(self.batch, dtype=torch.int32, device="cuda")
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace,
            "NHD",
            use_cuda_graph=True,
            use_tensor_cores=True,
            paged_kv_indptr_buffer=indptr,
            paged_kv_indices_buffer=indices,
            paged_kv_last_page_len_buffer=ones,
            backend="fa2",
        )
        dtype = torch.bfloat16
        wrapper.plan(indptr.cpu(), indices, ones, HEADS, KV_HEADS, HEAD_DIM, 1, q_data_type=dtype, kv_data_type=dtype)
        return wrapper

    def stages(self, config: LaunchConfig) -> dict[str, Callable[[int], Any]]:
        """What to time; the argument is the layer."""
        keys = [cache[0] for cache in self.caches]
        parts = [self.round(cache, config) for cache in keys]
        return {
            "dense": lambda i: self.dense.run(self.q, self.caches[i % CACHES]),
            "sparse": lambda i: self.sparse.run(self.q, self.caches[i % CACHES]),
            "score": lambda i: parts[i % CACHES].score(),
            "shortlist": lambda i: parts[i % CACHES].shortlist(),
            "emit": lambda i: parts[i % CACHES].emit(),
            "finish": lambda i: parts[i % CACHES].finish(),
            "select": lambda i: self.select(keys[i % CACHES], config),
        }

    def index(self) -> SlotIndex:
        return SlotIndex(self.kv_indptr, self.kv_indices, self.sparse_indptr, self.sparse_indices)

    def round(self, keys: Tensor, config: LaunchConfig) -> Round:
        """The launches for the whole batch."""
        (only,) = rounds(self.q, keys, self.index(), self.split, self.workspace, config)
        return only

    def select(self, keys: Tensor, config: LaunchConfig) -> None:
        select_slots(self.q, keys, *self.index(), self.split, self.workspace, config)

    def check(self, config: LaunchConfig) -> bool:
        """Whether the kernels' set of the first and last request is the reference's, from the kernels' own scores."""
        self.sparse_indices.fill_(-1)
        self.select(self.caches[0][0], config)
        for request in {0, self.batch - 1}:
            own = self.kv_indices[self.kv_indptr[request] : self.kv_indptr[request + 1]]
            exact = head_scores(self.q[request], self.caches[0][0][own.long()])
            found = exact.clone()
            inner = slice(self.split.sinks, self.context - self.split.recent)
            ordered = self.workspace.scores[request, :, : self.context][:, inner]
            found[:, inner] = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
            if self.context > self.budget and not torch.allclose(found, exact, rtol=0, atol=1e-3):
                return False
            chosen = select_token_set(found[None], torch.tensor([self.context], device="cuda"), self.split)
            expected = own[chosen.positions[0, : int(chosen.lengths[0])]]
            if not torch.equal(expected, self.sparse_indices[self.sparse_indptr[request] :][: len(expected)]):
                return False
        return True


def time_us(run: Callable[[int], Any], layers: int = 12, repeats: int = 15) -> float:
    """Median microseconds of one layer, from replays of a graph of ``layers`` layers."""
    for layer in range(3):
        run(layer)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in range(layers):
            run(layer)
    times = []
    for _ in range(repeats + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / layers)
    return statistics.median(times[2:])


def copy_tb_s() -> float:
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / time_us(lambda _: torch.mul(source, 1, out=target), layers=2) / 1e6


def measure(batch: int, context: int, budget: int, copy: float, config: LaunchConfig) -> dict[str, Any]:
    problem = Problem(batch, context, budget)
    row: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "batch": batch,
        "context": context,
        "budget": budget,
        "copy_tb_s": round(copy, 3),
    }
    if not problem.check(config):
        return row | {"speedup": "wrong set"}
    row["unfinished"] = int(problem.workspace.unfinished.sum())
    us = {name: time_us(run) for name, run in problem.stages(config).items()}
    sparse_layers = LAYERS - DENSE_LAYERS - SELECT_LAYERS
    dense_layers = DENSE_LAYERS + SELECT_LAYERS
    step = dense_layers * us["dense"] + SELECT_LAYERS * us["select"] + sparse_layers * us["sparse"]
    kept = min(context, budget)
    bound = batch * TOKEN_BYTES * (dense_layers * context + sparse_layers * kept) / copy / 1e6
    row |= {f"{name}_us": round(value, 2) for name, value in us.items()}
    return row | {
        "select_over_dense": round(us["select"] / us["dense"], 3),
        "step_dense_us": round(LAYERS * us["dense"], 1),
        "lim_us": round(step, 1),
        "speedup": round(LAYERS * us["dense"] / step, 3),
        "selection_share": round(SELECT_LAYERS * us["select"] / step, 3),
        "byte_bound_share": round(bound / step, 3),
        "dense_tb_s": round(batch * TOKEN_BYTES * context / us["dense"] / 1e6, 2),
        "sparse_tb_s": round(batch * TOKEN_BYTES * kept / us["sparse"] / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["8x32768", "16x16384", "1x32768", "16x1500"])
    parser.add_argument("--budgets", nargs="+", type=int, default=[2048])
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    copy = copy_tb_s()
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "decode_attention.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for shape in args.shapes:
            for budget in args.budgets:
                batch, context = map(int, shape.split("x"))
                row = measure(batch, context, budget, copy, LaunchConfig())
                writer.writerow(row)
                file.flush()
                print("  ".join(f"{name}={value}" for name, value in row.items()), flush=True)
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
