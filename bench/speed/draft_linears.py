"""The linear layers of one draft step on a GPU, by the format of the drafts' weights.

    python -m bench.speed.draft_linears
    python -m bench.speed.draft_linears --model Qwen3-32B --tp 2 --batches 8 --formats bf16 int8

Matrices of a published config in bfloat16, random-normal, every layer its own (none is found in L2), the head included,
one CUDA graph over all. In a step no product follows a product: a small kernel stands before each, and what a graph of
those alone takes is subtracted. Before a format is timed, its products are compared with those of its rounded weights
in float32. ``int8`` is what drafts use. For comparison: SGLang's Marlin with int8 and NVFP4 weights (which compiles for
five minutes when it is used first) and its CUTLASS product in e4m3, activations quantised per token.

``bound_share``: the bytes of the weights over the bandwidth of a copying kernel in the same run, over the time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import driver
from bench.speed.arms import CONFIGS
from bench.speed.byte_bound import head_dim_of
from bench.timing import copy_tb_s, graph_us
from lim_kernels.linear.launch import MAX_ROWS, LinearWorkspace, int8_linear
from lim_kernels.linear.reference import quantize

COLUMNS = ["gpu", "model", "tp", "batch", "format", "mib", "ms", "spread_ms", "speedup", "bound_share", "off"]
TOLERANCE = 1e-2  # of the norm; outputs are rounded to bfloat16
Row = dict[str, Any]


class Bf16:
    """The weight itself."""

    def __init__(self, weight: Tensor) -> None:
        self.parts = (weight,)

    def multiply(self, x: Tensor) -> Tensor:
        return F.linear(x, self.parts[0])

    def expected(self, x: Tensor) -> Tensor:
        return x.float() @ self.parts[0].float().T


class Int8:
    """What the drafts use; more rows than it is made for are multiplied in parts."""

    workspace = staticmethod(cache(LinearWorkspace.allocate))  # one for all weights, as in a server

    def __init__(self, weight: Tensor) -> None:
        self.parts = quantize(weight)

    def multiply(self, x: Tensor) -> Tensor:
        workspace = self.workspace(x.device)
        if len(x) <= MAX_ROWS:
            return int8_linear(x, self.parts, workspace)
        return torch.cat([int8_linear(part, self.parts, workspace) for part in x.split(MAX_ROWS)])

    def expected(self, x: Tensor) -> Tensor:
        return x.float() @ self.parts.dequantize().T


class Fp8:
    """e4m3, a scale per row of the weight and per token."""

    def __init__(self, weight: Tensor) -> None:
        scale = weight.abs().amax(1, keepdim=True).float() / 448
        self.parts = ((weight.float() / scale).to(torch.float8_e4m3fn), scale)

    def multiply(self, x: Tensor) -> Tensor:
        from sgl_kernel import fp8_scaled_mm

        codes, scales = self._quantize(x)
        return fp8_scaled_mm(codes, self.parts[0].T, scales, self.parts[1], torch.bfloat16)

    def expected(self, x: Tensor) -> Tensor:
        codes, scales = self._quantize(x)
        return (codes.float() * scales) @ (self.parts[0].float() * self.parts[1]).T

    def _quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        from sgl_kernel import sgl_per_token_quant_fp8

        codes = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
        scales = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
        sgl_per_token_quant_fp8(x, codes, scales)
        return codes, scales


class MarlinInt8:
    """Marlin's ``uint8b128``, one scale per row; N a multiple of 64 and K of 128."""

    bits, quant_type, outer_scale = 8, "uint8b128", None

    def __init__(self, weight: Tensor) -> None:
        from sglang.srt.layers.quantization import marlin_utils, marlin_utils_fp4

        self.host, self.fp4 = marlin_utils, marlin_utils_fp4
        self.shape = weight.shape
        self.workspace = marlin_utils.marlin_make_workspace(weight.device)
        codes, scales = self.quantize(weight)
        none = torch.empty(0, dtype=torch.int32, device=weight.device)
        words = codes.view(torch.int32).T.contiguous()
        n, k = self.shape
        self.parts = (self.fp4.gptq_marlin_repack(words, none, k, n, self.bits), scales)

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        found = quantize(weight)
        self.rounded = lambda: found.dequantize()
        scales = self.host.marlin_permute_scales(found.scales[None], weight.shape[1], len(weight), -1)
        return found.codes.view(torch.uint8) ^ 128, scales

    def multiply(self, x: Tensor) -> Tensor:
        kind, (n, k) = getattr(self.host.scalar_types, self.quant_type), self.shape
        none = (None, None, None)
        return self.fp4.gptq_marlin_gemm(
            *(x, None, *self.parts, self.outer_scale, *none, self.workspace, kind, len(x), n, k), use_fp32_reduce=True
        )

    def expected(self, x: Tensor) -> Tensor:
        return x.float() @ self.rounded().T


class MarlinNvfp4(MarlinInt8):
    """Marlin's ``float4_e2m1f``: an e4m3 scale per 16 columns of a row and one scale of all."""

    bits, quant_type = 4, "float4_e2m1f"
    VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        outer = (weight.abs().max().float() / (6 * 448)).to(weight.dtype)
        grouped = weight.float().unflatten(1, (-1, 16))
        scales = (grouped.abs().amax(-1) / 6 / outer.float()).clamp(2.0**-9, 448).to(torch.float8_e4m3fn)
        ratio = (grouped / (scales.float()[..., None] * outer.float())).flatten(1)
        values = torch.tensor(self.VALUES, device=weight.device)
        codes = torch.bucketize(ratio.abs(), (values[1:] + values[:-1]) / 2)
        step = (scales.float() * outer.float()).repeat_interleave(16, 1)
        sign = (ratio < 0).byte()
        self.rounded = lambda: values[codes] * (1 - 2 * sign.float()) * step
        permuted = self.host.marlin_permute_scales(
            scales.T.contiguous().to(weight.dtype), weight.shape[1], len(weight), 16
        )
        self.outer_scale = self.fp4.nvfp4_marlin_process_global_scale(outer)
        nibbles = codes.byte() | sign << 3
        return nibbles[:, 0::2] | nibbles[:, 1::2] << 4, self.fp4.nvfp4_marlin_process_scales(permuted)


FORMATS: dict[str, Callable[[Tensor], Any]] = {
    "bf16": Bf16,
    "int8": Int8,
    "fp8_w8a8": Fp8,
    "marlin_int8": MarlinInt8,
    "marlin_nvfp4": MarlinNvfp4,
}


def matrices(config: dict[str, Any], tp: int = 1, layers: int | None = None) -> list[tuple[int, int]]:
    """N and K of all matrices of a step on one of ``tp`` ranks, the head last."""
    hidden, width = config["hidden_size"], config["intermediate_size"] // tp
    heads, kv_heads = config["num_attention_heads"] // tp, max(1, config["num_key_value_heads"] // tp)
    head_dim = head_dim_of(config)
    qkv, output = ((heads + 2 * kv_heads) * head_dim, hidden), (hidden, heads * head_dim)
    layer = [qkv, output, (2 * width, hidden), (hidden, width)]
    return [*(layer * (layers or config["num_hidden_layers"])), (config["vocab_size"] // tp, hidden)]


def measure(name: str, args: argparse.Namespace, copy: float) -> list[Row]:
    """A row per batch size: checked, then timed."""
    config = json.loads((CONFIGS / f"{args.model}.json").read_text())
    shapes = matrices(config, args.tp, args.layers)
    copies, off, seen = [], 0.0, set()
    for n, k in shapes:
        weight = torch.randn(n, k, dtype=torch.bfloat16, device="cuda") * k**-0.5
        copies.append(FORMATS[name](weight))
        if (n, k) not in seen:
            off = max([off, *(distance(copies[-1], k, batch) for batch in args.batches)])
        if name.startswith("marlin"):
            copies[-1].rounded = None
        seen.add((n, k))
    nbytes = sum(part.nbytes for copy in copies for part in copy.parts)
    row: Row = {"gpu": torch.cuda.get_device_name(), "model": args.model, "tp": args.tp, "format": name}
    rows = []
    for batch in args.batches:
        inputs = {k: torch.randn(batch, k, dtype=torch.bfloat16, device="cuda") for _, k in shapes}
        run = [(copy, inputs[k]) for copy, (_, k) in zip(copies, shapes, strict=True)]
        between, _ = graph_us(lambda run=run: [x.mul(1) for _, x in run])  # type: ignore[misc]
        both, spread = graph_us(lambda run=run: [copy.multiply(x.mul(1)) for copy, x in run])  # type: ignore[misc]
        us = both - between
        found = {"batch": batch, "mib": nbytes >> 20, "ms": round(us / 1e3, 3), "spread_ms": round(spread / 1e3, 3)}
        rows.append(row | found | {"bound_share": round(nbytes / copy / 1e6 / us, 3), "off": f"{off:.1e}"})
    return rows


def distance(copy: Any, k: int, batch: int) -> float:
    """From the product of the rounded weight in float32, relative to its norm."""
    x = torch.randn(batch, k, dtype=torch.bfloat16, device="cuda")
    expected = copy.expected(x)
    return float((copy.multiply(x).float() - expected).norm() / expected.norm())


def main() -> None:
    parser = driver.parser(__doc__)
    parser.add_argument("--model", default="Qwen3-8B", help="name of a config in bench/models (Qwen3-8B)")
    parser.add_argument("--tp", type=int, default=1, help="ranks that share the matrices (1)")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8, 16, 32, 64], help="rows of activations")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["bf16", "int8", "fp8_w8a8"])
    driver.add_out(parser)
    args = parser.parse_args()
    driver.require_gpu(parser)
    copy, rows = copy_tb_s(), list[Row]()
    bf16: dict[int, float] = {}
    driver.write_json(args.out / "draft_linears.json", copy_tb_s=copy)
    with driver.row_writer(args.out / "draft_linears.csv", COLUMNS) as add:
        for name in dict.fromkeys(["bf16", *args.formats]):
            for row in measure(name, args, copy):
                bf16.setdefault(row["batch"], row["ms"])
                wrong = not float(row["off"]) <= TOLERANCE
                rows.append(row | {"speedup": "wrong products" if wrong else round(bf16[row["batch"]] / row["ms"], 3)})
                add(rows[-1])
            torch.cuda.empty_cache()
    driver.print_rows(rows, COLUMNS)
    driver.exit_on_problems(rows)


if __name__ == "__main__":
    main()
