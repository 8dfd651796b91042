"""Kernels that are launched before the one ahead of them has ended (programmatic dependent launch, Hopper on)."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from lim_kernels.gpu import gpu_of


@triton.jit
def await_previous(CHAINED: tl.constexpr) -> None:
    """Wait, first in a kernel, until everything before it in the stream is done and visible.

    Every program calls it, one with nothing to do as well: the kernel after this one waits for this one only.
    """
    if CHAINED:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


def launch_options(device: torch.device, follows: bool = True) -> dict[str, Any]:
    """Launch options of a kernel that calls ``await_previous``.

    Args:
        device: where it runs.
        follows: whether the kernel before it in the stream calls ``await_previous`` too; the first of a chain waits for
            the end of all that came before, like any kernel.
    """
    supported = gpu_of(device).chains
    return {"CHAINED": supported} | ({"launch_pdl": True} if supported and follows else {})
