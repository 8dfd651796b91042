"""One layer's attention over the whole cache for several query tokens per request, against one token's.

    python -m bench.speed.verify_attention --shapes 8x32768 16x16384 1x32768 --tokens 1 4 7 8 12
    python -m bench.speed.verify_attention --shapes 8x32768 --tokens 8 --tune

Random-normal q, K and V of Qwen3-8B's shape, bf16, slots in random order, captured in a CUDA graph and replayed over
caches that L2 does not hold. Outputs are compared with the reference before they are timed; what is wrong gets no
speed. Beside it FlashInfer's paged prefill with a causal mask, planned before, and FlashInfer's decode.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import torch

from bench import driver
from bench.speed.arms import shape_of
from bench.speed.attention_problem import HEAD_DIM, HEADS, KV_HEADS, TOLERANCE, Problem, relative_error
from bench.timing import layer_us
from lim_kernels.attend.config import AttendConfig, HeadShape, verify_config
from lim_kernels.attend.launch import AttendWorkspace, KVCache, Requests, attend
from lim_kernels.attend.reference import verify_attention

BF16 = torch.bfloat16
COLUMNS = ["gpu", "batch", "context", "tokens", "block_n", "warps", "stages", "programs", "min_splits", "us"]
COLUMNS += ["of_one_token", "flashinfer_prefill_us", "flashinfer_decode_us"]
Row = dict[str, Any]


class Verification:
    """``tokens`` query tokens per request, the last of ``context``."""

    def __init__(self, problem: Problem, tokens: int) -> None:
        self.problem, self.tokens = problem, tokens
        self.q = torch.randn(problem.batch * tokens, HEADS, HEAD_DIM, dtype=BF16, device="cuda")
        self.out = torch.empty_like(self.q)
        self.requests = Requests(problem.kv_indptr, problem.kv_indices, 0, problem.batch, tokens)

    def cache(self, layer: int) -> KVCache:
        return KVCache(*self.problem.caches[layer % len(self.problem.caches)], HEAD_DIM**-0.5)

    def us(self, config: AttendConfig) -> float | str:
        """Microseconds of a layer, or what is wrong."""
        sizes = self.problem.batch, HEADS, KV_HEADS, HEAD_DIM
        workspace = AttendWorkspace.allocate(*sizes, "cuda", config, self.tokens)

        def run(layer: int) -> None:
            attend(self.q, self.cache(layer), self.requests, self.out, workspace, config)

        self.out.fill_(float("nan"))
        run(0)
        error = relative_error(self.out, self.expected())
        return round(layer_us(run), 2) if error < TOLERANCE else f"off by {error:.2g}"

    def expected(self) -> torch.Tensor:
        problem = self.problem
        table = problem.kv_indices.view(problem.batch, problem.context)
        rows = torch.arange(problem.batch, device="cuda")
        keys, values, scale = self.cache(0)[:3]
        prefixes = torch.full((problem.batch,), problem.context - self.tokens)
        q = self.q.unflatten(0, (problem.batch, self.tokens))
        return verify_attention(q, keys, values, table, rows, prefixes, scale).flatten(0, 1)

    def prefill_us(self) -> float:
        """FlashInfer's paged prefill, planned once."""
        import flashinfer

        problem = self.problem
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(problem.workspace, "NHD", backend="fa2")
        ends = torch.arange(problem.batch + 1, dtype=torch.int32, device="cuda") * self.tokens
        ones = torch.ones(problem.batch, dtype=torch.int32, device="cuda")
        indices = ends, problem.kv_indptr, problem.kv_indices, ones
        wrapper.plan(*indices, HEADS, KV_HEADS, HEAD_DIM, 1, causal=True, q_data_type=BF16, kv_data_type=BF16)
        return round(layer_us(lambda layer: wrapper.run(self.q, tuple(self.cache(layer)[:2]))), 2)


def measure(batch: int, context: int, args: argparse.Namespace) -> Iterator[Row]:
    """A row per number of tokens, or per configuration."""
    problem = Problem(batch, context, [2048])
    decode = round(layer_us(problem.dense_stages()["dense"]), 2)
    one = math.inf  # microseconds of the fastest launch of one token
    for tokens in args.tokens:
        verification = Verification(problem, tokens)
        shipped = verify_config(HeadShape(HEAD_DIM, HEADS // KV_HEADS, BF16, BF16, tokens))
        prefill = verification.prefill_us()
        for config in candidates(shipped) if args.tune else [shipped]:
            us = verification.us(config)
            if tokens == 1 and isinstance(us, float):
                one = min(one, us)
            comparable = isinstance(us, float) and one < math.inf
            yield {
                "gpu": torch.cuda.get_device_name(),
                "batch": batch,
                "context": context,
                "tokens": tokens,
                **{name: value for name, value in asdict(config).items() if name in COLUMNS},
                "us": us,
                "of_one_token": round(us / one, 3) if comparable else "",  # type: ignore[operator]
                "flashinfer_prefill_us": prefill,
                "flashinfer_decode_us": decode,
            }


def candidates(shipped: AttendConfig) -> Iterator[AttendConfig]:
    yield shipped
    for block_n, warps, stages, programs in product((32, 64, 128), (4, 8), (2, 3, 5), (264, 528)):
        yield replace(shipped, block_n=block_n, warps=warps, stages=stages, programs=programs)


def main() -> None:
    parser = driver.parser(__doc__)
    shapes = [(8, 32768), (16, 16384), (1, 32768), (16, 1500)]
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=shapes, help="batch x tokens")
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 4, 7, 8, 12], help="query tokens per request")
    parser.add_argument("--tune", action="store_true", help="many configurations of the launch")
    driver.add_out(parser)
    args = parser.parse_args()
    driver.require_gpu(parser)
    driver.write_json(args.out / "verify_attention.json")
    with driver.row_writer(args.out / "verify_attention.csv", COLUMNS) as add:
        for batch, context in args.shapes:
            for row in measure(batch, context, args):
                add(row)
                print(driver.pairs(row), flush=True)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
