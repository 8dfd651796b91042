"""Finds a request's last slot without Triton on a CPU, where the lossless mode allocates a round's pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lim_patches.patch import Patch

if TYPE_CHECKING:
    import torch


def by_torch(
    _original: Callable[..., torch.Tensor], req_to_token: torch.Tensor, rows: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """SGLang's own function for backends that it knows to run without Triton: the slot before each length, or -1."""
    from sglang.srt.mem_cache.allocation import get_last_loc_torch

    last: torch.Tensor = get_last_loc_torch(req_to_token, rows, lengths)
    return last


PATCH = Patch(
    "sglang.srt.mem_cache.allocation.get_last_loc",
    by_torch,
    "around",
    "sglang.srt.managers.scheduler",
    only_on_cpu_host=True,
)
