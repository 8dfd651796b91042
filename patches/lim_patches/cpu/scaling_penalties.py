"""Applies repetition penalties without torch.compile, which needs a C++ compiler on a CPU and stalls all requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lim_patches.patch import Patch

if TYPE_CHECKING:
    import torch


def apply_eagerly(original: Callable[..., None], logits: torch.Tensor, scaling_penalties: torch.Tensor) -> None:
    import torch

    torch.compiler.disable(original)(logits, scaling_penalties)


PATCH = Patch(
    "sglang.srt.sampling.penaltylib.repetition_penalty.apply_scaling_penalties",
    apply_eagerly,
    "around",
    "sglang.srt.managers.scheduler",
    only_on_cpu_host=True,
)
