"""Compile what the launchers ask for, for GPUs that are not here: ``python tests/kernels/compile_matrix.py 80 86 …``.

The launchers themselves run, on a CPU's tensors, under a driver that names the target and launches nothing: every
variant has the specialisations of a real call. Prints a table; with ``--json`` one record a line. ``ptxas``
assembles every attention variant and the first of each other kernel, whose variants differ in sizes only.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from types import ModuleType
from typing import Any, NamedTuple

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

sys.modules.setdefault("flashinfer", ModuleType("flashinfer")).__dict__.setdefault(
    "BatchDecodeWithPagedKVCacheWrapper", object
)

from lim_kernels import chain  # noqa: E402
from lim_kernels.attend import launch  # noqa: E402
from lim_kernels.attend.config import AttendConfig, HeadShape, fit_config, verify_config  # noqa: E402
from lim_kernels.attend.launch import AttendWorkspace, KVCache, Requests, attend  # noqa: E402
from lim_kernels.attend.slots import list_slots  # noqa: E402
from lim_kernels.gpu import Gpu  # noqa: E402
from lim_kernels.select.budget import split_budget  # noqa: E402
from lim_kernels.select.launch import (  # noqa: E402
    LaunchConfig,
    SelectLayer,
    SlotIndex,
    write_sparse_indptr,
)
from lim_kernels.select.shard import Exchange, HeadShard  # noqa: E402
from lim_kernels.select.workspace import SelectWorkspace  # noqa: E402
from lim_sglang.attention.wrappers import SPARSE_LAUNCH  # noqa: E402

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

    def __str__(self) -> str:
        dtypes = " kv ".join(str(dtype).removeprefix("torch.") for dtype in (self.q_dtype, self.kv_dtype))
        kind = self.kind if self.q_len == 1 else f"{self.kind} T={self.q_len}"
        return f"{kind} D={self.head_dim} group={self.group} {dtypes}{' capped' if self.capped else ''}"


# Any two values of two columns meet in some row, where sizes count as what they are padded to; then what is usual.
COVERING = (
    Layer("select", 64, 8, FP16, FP8, False),
    Layer("sparse", 64, 32, FP16, FP8, True),
    Layer("select", 64, 64, BF16, BF16, False),
    Layer("sparse", 128, 16, BF16, FP8, False),
    Layer("select", 80, 32, BF16, BF16, True),
    Layer("sparse", 96, 64, FP16, FP8, False),
    Layer("select", 256, 1, FP16, FP16, True),
    Layer("sparse", 192, 32, BF16, FP8, False),
    Layer("sparse", 256, 64, BF16, BF16, True),
    Layer("select", 128, 4, BF16, BF16, False),
    Layer("sparse", 128, 4, BF16, BF16, False),
    Layer("all recent", 112, 8, BF16, BF16, True),
)
VERIFYING = (
    Layer("verify", 64, 8, FP16, FP8, False, 2),
    Layer("verify", 256, 8, FP16, FP16, True, 3),
    Layer("verify", 128, 4, BF16, FP8, False, 4),
    Layer("verify", 128, 4, BF16, BF16, False, 5),
    Layer("verify", 80, 32, BF16, BF16, True, 6),
    Layer("verify", 128, 4, BF16, BF16, False, 7),
    Layer("verify", 128, 7, BF16, BF16, False, 8),
    Layer("verify", 64, 3, BF16, BF16, False, 9),
    Layer("verify", 192, 1, BF16, FP8, True, 10),
    Layer("verify", 256, 64, FP16, FP8, False, 11),
    Layer("verify", 64, 8, BF16, BF16, False, 12),
    Layer("verify", 128, 8, BF16, FP8, False, 13),
)
BUDGETS = {"least": (20, 8), "default": (2048, 32), "unranked": (2048, 32), "most": (10922, 64)}  # tokens, query heads
EVERYTHING_ON = (90,)  # other targets compile a third of the attention variants and the default budget
LARGEST_ON = (86,)  # where the most tokens are ranked on little room: eight seconds of compilation each


@dataclass
class Record:
    """One compiled kernel: shared memory and what was foreseen of it, machine code, the first line of an error."""

    target: int
    variant: str
    kernel: str
    shared: int = 0
    foreseen: int | None = None
    cubin: int = 0
    flushes: bool = False
    tiles: str = ""
    error: str = ""
    layer: list[Any] | None = None


class Target:
    """A driver for a GPU that is not there, and what was compiled for it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.gpu = Gpu(divmod(number, 10), LIMITS[number])
        self.variant = ""
        self.layer: Layer | None = None
        self.fit: tuple[AttendConfig, HeadShape] | None = None
        self.records: list[Record] = []
        self.seen: set[str] = set()
        self.assembled: set[str] = set()
        self.kernel = ""

    def get_current_device(self) -> int:
        """Triton keeps what it compiled by this number."""
        return self.number

    def get_current_stream(self, _device: int) -> int:
        """Nothing runs in it."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return GPUTarget("cuda", self.number, 32)

    def choose_stages(self, *backend_and_stages: Any) -> tuple[str, str] | None:
        """Triton's hook on the stages of a compilation: no machine code for the later variants of a kernel.

        Triton 3.8 asks without arguments, too, for what names the choice in its cache (a key and a hash).
        """
        only_ptx = self.kernel in self.assembled
        if not backend_and_stages:
            return str(only_ptx), str(only_ptx)
        if only_ptx:
            _backend, stages, *_ = backend_and_stages
            stages["cubin"] = lambda _ptx, _metadata: b""
        return None

    def compile(self, variants: tuple[Layer, ...]) -> list[Record]:
        """Run the launchers and compile what they launch."""
        driver.set_active(self)
        knobs.runtime.add_stages_inspection_hook = self.choose_stages
        compile_only = JITFunction.run

        def run(kernel: Any, *args: Any, **options: Any) -> None:
            name = kernel.fn.__name__
            record = Record(self.number, self.variant, name)
            self.kernel = name
            try:
                compiled = compile_only(kernel, *args, **options | {"warmup": True})
            except Exception as error:
                record.error = str(error.__cause__ or error).strip().splitlines()[-1]
            else:
                if compiled.hash in self.seen:
                    return
                self.seen.add(compiled.hash)
                record.shared, record.cubin = compiled.metadata.shared, len(compiled.asm["cubin"])
                record.flushes = bool(re.search(r"\bmul\.(rn\.)?ftz\.f32", compiled.asm["ptx"]))
            if name != "attend_kernel":
                self.assembled.add(name)
            else:
                assert self.fit is not None
                config, heads = self.fit
                record.layer = self.layer and [
                    str(value) if isinstance(value, torch.dtype) else value for value in self.layer
                ]
                record.foreseen = heads.shared_bytes(config)
                record.tiles = f"{config.block_n}x{config.stages}"
            self.records.append(record)

        def fit(config: AttendConfig, heads: HeadShape, gpu: Gpu) -> AttendConfig:
            chosen = fit_config(config, heads, gpu)
            self.fit = chosen, heads
            return chosen

        JITFunction.run = run
        launch.fit_config = fit
        launch.gpu_of = chain.gpu_of = lambda _device: self.gpu  # type: ignore[assignment]
        try:
            for attention in variants:
                self.variant, self.layer = str(attention), attention
                run_attention(attention)
            self.layer = None
            for name, (budget, num_heads) in BUDGETS.items():
                if self.number not in (LARGEST_ON if name == "most" else EVERYTHING_ON) and name != "default":
                    continue
                self.variant = f"{name} budget"
                layer = selection(num_heads, 4, 128, BF16, BF16, budget, 1.0 if name == "unranked" else 0.25)
                layer.run()
                self.variant += ", shared heads"
                shared(layer).run()
            for batch in (1, 4096):
                self.variant = f"batch of {batch}"
                write_sparse_indptr(*(torch.zeros(batch + 1, dtype=torch.int32) for _ in range(2)), batch, 2048)
                requests = torch.zeros(batch, dtype=torch.int64)
                table, ends = torch.zeros(batch, 64, dtype=torch.int32), torch.zeros(batch + 1, dtype=torch.int32)
                list_slots(table, requests, requests, 7, ends, ends)
        finally:
            JITFunction.run = compile_only
        return self.records


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


def variants_of(target: int) -> tuple[Layer, ...]:
    """Every attention variant, or every third where the target is not in ``EVERYTHING_ON``: another third on each."""
    variants = COVERING + VERIFYING
    return variants if target in EVERYTHING_ON else variants[list(LIMITS).index(target) % 3 :: 3]


def main() -> None:
    """Compile and print; the exit code is 1 where something does not compile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", type=int, default=list(LIMITS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as knobs.cache.dir:  # not the user's: some of these kernels lack machine code
        records = [record for number in options.targets for record in Target(number).compile(variants_of(number))]
    if options.json:
        for record in records:
            print(json.dumps(asdict(record)))
        return
    table: dict[tuple[str, str], dict[int, str]] = {}
    for record in records:
        cell = record.error or f"{record.shared}" + (f" ({record.tiles})" if record.tiles else "")
        table.setdefault((record.kernel, record.variant), {})[record.target] = cell
    print("| kernel | variant |", *(f"sm_{number} |" for number in options.targets))
    print("|---" * (2 + len(options.targets)) + "|")
    print("| limit | |", *(f"{LIMITS[number]} |" for number in options.targets))
    for (kernel, variant), cells in sorted(table.items()):
        print(f"| {kernel} | {variant} |", *(f"{cells.get(number, '')} |" for number in options.targets))
    sys.exit(any(record.error for record in records))


if __name__ == "__main__":
    main()
