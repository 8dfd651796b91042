"""Compile what the launchers ask for, for GPUs that are not here: ``python tests/kernels/compile_matrix.py 80 86 …``.

The launchers themselves run, on a CPU's tensors, under a driver that names the target and launches nothing: every
variant has the specialisations of a real call. Prints one JSON record a line.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from lim_kernels import chain
from lim_kernels.attend import launch
from lim_kernels.attend.config import AttendConfig, HeadShape, fit_config, verify_config
from lim_kernels.attend.launch import AttendWorkspace, KVCache, Requests, attend
from lim_kernels.attend.slots import list_slots
from lim_kernels.gpu import Gpu
from lim_kernels.linear import launch as linear
from lim_kernels.linear.reference import quantize
from lim_kernels.select.budget import split_budget
from lim_kernels.select.launch import LaunchConfig, SelectLayer, SlotIndex, write_sparse_indptr
from lim_kernels.select.shard import Exchange, HeadShard
from lim_kernels.select.workspace import SelectWorkspace
from lim_sglang.attention.buffers import SPARSE_LAUNCH

LIMITS = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""Shared memory that a block may have, in bytes, by compute capability times ten: CUDA C++ programming guide."""

BF16, FP16, FP8 = torch.bfloat16, torch.float16, torch.float8_e4m3fn


class Layer(NamedTuple):
    """A layer's attention as a launcher sees it; ``kind`` says whose launch constants and whether it selects.

    ``q_len``: query tokens per request.
    """

    kind: str
    head_dim: int
    group: int
    q_dtype: torch.dtype
    kv_dtype: torch.dtype
    capped: bool
    q_len: int = 1


# Any two values of two columns meet in some row, where sizes count as what they are padded to, beside what is usual.
COVERING = (
    Layer("select", 64, 8, FP16, FP8, False),
    Layer("sparse", 64, 32, FP16, FP8, True),
    Layer("select", 64, 64, BF16, BF16, False),
    Layer("sparse", 128, 16, BF16, FP8, False),
    Layer("select", 80, 32, BF16, BF16, True),
    Layer("sparse", 96, 64, FP16, FP8, False),
    Layer("select", 256, 1, FP16, FP16, True),
    Layer("sparse", 192, 32, BF16, FP8, False),
    Layer("select", 128, 4, BF16, BF16, False),
    Layer("sparse", 256, 64, BF16, BF16, True),
    Layer("sparse", 128, 4, BF16, BF16, False),
    Layer("all recent", 112, 8, BF16, BF16, True),
)
VERIFYING = (
    Layer("verify", 64, 8, FP16, FP8, False, 2),
    Layer("verify", 128, 4, BF16, BF16, False, 5),
    Layer("verify", 256, 64, FP16, FP8, True, 11),
    Layer("verify", 128, 8, BF16, FP8, False, 13),
)
WHOLE = 90  # every variant; the other targets compile some, beside the usual one
SOME = {80: COVERING[:1], 86: COVERING[7:8], 89: COVERING[9:10], 100: VERIFYING[1:2], 120: VERIFYING[3:]}
LARGEST = 86  # the most tokens and query heads where there is the least room


class Target:
    """A driver for a GPU that is not there, and what was compiled for it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.gpu = Gpu(divmod(number, 10), LIMITS[number], multiprocessors=100)
        self.variant = ""
        self.foreseen = 0
        self.records: list[dict[str, Any]] = []
        self.seen: set[str] = set()

    def get_current_device(self) -> int:
        """Triton keeps what it compiled by this number."""
        return self.number

    def get_current_stream(self, _device: int) -> int:
        """Nothing runs in it."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return GPUTarget("cuda", self.number, 32)

    def compile(self) -> list[dict[str, Any]]:
        """Run the launchers and compile what they launch."""
        driver.set_active(self)
        compile_only = JITFunction.run

        def run(kernel: Any, *args: Any, **options: Any) -> None:
            record = {"target": self.number, "variant": self.variant, "kernel": kernel.fn.__name__}
            try:
                compiled = compile_only(kernel, *args, **options | {"warmup": True})
            except Exception as error:
                self.records.append(record | {"error": str(error.__cause__ or error).strip().splitlines()[-1]})
                return
            if compiled.hash not in self.seen:
                self.seen.add(compiled.hash)
                record |= {"shared": compiled.metadata.shared, "foreseen": self.foreseen}
                record["flushes"] = bool(re.search(r"\bmul\.(rn\.)?ftz\.f32", compiled.asm["ptx"]))
                self.records.append(record)

        def fit(config: AttendConfig, heads: HeadShape, gpu: Gpu) -> AttendConfig:
            chosen = fit_config(config, heads, gpu)
            self.foreseen = heads.shared_bytes(chosen)
            return chosen

        JITFunction.run = run
        launch.fit_config = fit
        launch.gpu_of = linear.gpu_of = chain.gpu_of = lambda _device: self.gpu  # type: ignore[assignment]
        try:
            self.launch_all()
        finally:
            JITFunction.run = compile_only
        return self.records

    def launch_all(self) -> None:
        """Launch the target's variants of attention, the selection, and what a step begins with."""
        for attention in SOME.get(self.number, COVERING + VERIFYING):
            self.variant = str(attention)
            run_attention(attention)
        budget, num_heads = (10922, 64) if self.number == LARGEST else (256, 32)
        self.variant = f"budget {budget}"
        layer = selection(num_heads, 4, 128, BF16, BF16, budget, 0.25)
        layer.run()
        shared(layer).run()
        self.variant = "linear"
        run_linear()
        for batch in (1, 4096) if self.number == WHOLE else (1,):
            self.variant = f"batch of {batch}"
            write_sparse_indptr(*(torch.zeros(batch + 1, dtype=torch.int32) for _ in range(2)), batch, 2048)
            requests = torch.zeros(batch, dtype=torch.int64)
            table, ends = torch.zeros(batch, 64, dtype=torch.int32), torch.zeros(batch + 1, dtype=torch.int32)
            list_slots(table, requests, requests, 7, ends, ends)


def run_linear() -> None:
    """Few and many rows, a weight of whole blocks and one that ends in a part of one, both shared by programs."""
    for rows, k in ((1, 4096), (linear.MAX_ROWS, 576)):
        x = torch.zeros(rows, k, dtype=BF16)
        linear.int8_linear(x, quantize(torch.zeros(64, k, dtype=BF16)), linear.LinearWorkspace.allocate(x.device))


def run_attention(layer: Layer) -> None:
    """One attention launch and its merge, as the wrappers ask for it."""
    recency_ratio = 1.0 if layer.kind == "all recent" else 0.25
    made = selection(
        2 * layer.group, layer.group, layer.head_dim, layer.q_dtype, layer.kv_dtype, 2048, recency_ratio, layer.capped
    )
    if layer.kind not in ("sparse", "verify"):
        made.attend(made.chunks()[0])
        return
    heads = HeadShape(layer.head_dim, layer.group, layer.q_dtype, layer.kv_dtype, layer.q_len)
    config = SPARSE_LAUNCH if layer.kind == "sparse" else verify_config(heads)
    workspace = AttendWorkspace.allocate(1, *made.q.shape[1:2], 2, layer.head_dim, "cpu", config, layer.q_len)
    q = made.q.expand(layer.q_len, -1, -1).contiguous()
    attend(q, made.cache, Requests(*made.index[2:], 0, 1, layer.q_len), torch.empty_like(q), workspace, config)


def selection(
    num_heads: int,
    group: int,
    head_dim: int,
    q_dtype: torch.dtype,
    kv_dtype: torch.dtype,
    budget: int,
    recency_ratio: float,
    capped: bool = False,
) -> SelectLayer:
    """One request's SELECT layer; nothing is read, so its tensors hold nothing."""
    parts = split_budget(budget, recency_ratio, 4)
    indptr, indices = torch.zeros(2, dtype=torch.int32), torch.zeros(budget, dtype=torch.int32)
    keys, values = (torch.empty(16, num_heads // group, head_dim, dtype=kv_dtype) for _ in range(2))
    q = torch.empty(1, num_heads, head_dim, dtype=q_dtype)
    config = LaunchConfig()
    return SelectLayer(
        q,
        KVCache(keys, values, head_dim**-0.5, 1.0, 30.0 if capped else 0.0),
        SlotIndex(indptr, indices, indptr.clone(), indices.clone()),
        torch.empty_like(q),
        parts,
        SelectWorkspace.allocate(1, 128, num_heads, parts, "cpu"),
        AttendWorkspace.allocate(1, num_heads, num_heads // group, head_dim, "cpu", config.attend),
        config,
    )


def shared(layer: SelectLayer) -> SelectLayer:
    """The same where two devices share the heads."""
    shard = HeadShard(layer.q.shape[1], 0, 2, lambda _gathered, _offered: None)
    return replace(layer, exchange=Exchange.allocate(shard, 1, layer.parts.selected, "cpu"))


if __name__ == "__main__":
    records = [record for number in map(int, sys.argv[1:]) for record in Target(number).compile()]
    for record in records:
        print(json.dumps(record))
    sys.exit(any("error" in record for record in records))
