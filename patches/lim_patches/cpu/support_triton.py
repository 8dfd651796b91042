"""Tells SGLang that ``lim`` on a CPU launches no Triton kernel: it assumes so for every name it does not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lim_cpu_host import is_active
from lim_patches.patch import Patch


def without_gpu(original: Callable[[Any], bool], backend: Any) -> bool:
    if backend == "lim" and is_active():
        return False
    return original(backend)


PATCH = Patch("sglang.srt.utils.common.support_triton", without_gpu, "around")
