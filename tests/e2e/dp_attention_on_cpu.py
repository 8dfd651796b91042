"""An SGLang plugin for tests: DP attention on a CPU, which SGLang 0.5.16 serves on a GPU only.

It pins memory, copies with a Triton kernel and registers its collectives for CUDA alone; from 0.5.23 on, SGLang does
on a CPU what stands here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lim_sglang.host.host_check import HostName, check

GROUP = "sglang.srt.distributed.parallel_state.GroupCoordinator"


def is_missing() -> bool:
    """Whether the installed SGLang has no DP attention on a CPU; imports nothing of it."""
    return not check([HostName("sglang.srt.layers.dp_attention", "memcpy_cpu")])[0].ok


def register() -> None:
    """Hook what does not run on a CPU; SGLang calls this in every process."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register("torch.tensor", pageable, HookType.AROUND)
    HookRegistry.register("sglang.srt.layers.dp_attention.memcpy_triton", copy_rows, HookType.AROUND)
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        HookRegistry.register(f"{GROUP}.{name}", through_gloo(f"_{name}"), HookType.AROUND)


def pageable(original: Callable[..., Any], *args: Any, pin_memory: bool = False, **options: Any) -> Any:
    """A tensor in memory that is not pinned: there is no device to copy it to."""
    return original(*args, **options)


def copy_rows(_triton: Any, dst: Any, src: Any, dim: int, offset: Any, size: Any, offset_src: bool) -> None:
    """Copy up to ``size`` rows, from or to row ``offset`` on."""
    assert dim == 0
    from_row, to_row = (int(offset), 0) if offset_src else (0, int(offset))
    rows = min(int(size), len(src) - from_row, len(dst) - to_row)
    dst[to_row : to_row + rows] = src[from_row : from_row + rows]


def through_gloo(name: str) -> Callable[..., None]:
    """The collective behind the operator that is registered for CUDA only."""

    def collective(_operator: Any, group: Any, output: Any, own: Any) -> None:
        getattr(group, name)(output, own)

    return collective
