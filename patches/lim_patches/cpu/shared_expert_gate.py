"""Adds the shared expert of Qwen's MoE models without Triton: SGLang does so on CPUs with AMX only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lim_patches.patch import Patch

if TYPE_CHECKING:
    import torch


def add_gated(
    _original: Callable[..., None],
    hidden_states: torch.Tensor,
    gate_weight: torch.Tensor,
    shared_output: torch.Tensor,
    final_hidden_states: torch.Tensor,
) -> None:
    """Add the shared expert's output, as far as its gate lets it through, to the other experts'.

    Args:
        hidden_states: [T, hidden], what the experts were given.
        gate_weight: [hidden].
        shared_output: [T, hidden].
        final_hidden_states: [T, hidden], written in place.
    """
    gate = (hidden_states.float() @ gate_weight.float()).sigmoid()
    final_hidden_states += (gate[:, None] * shared_output.float()).to(final_hidden_states.dtype)


_PACKAGES = ("layernorm", "elementwise")  # in 0.5.16, in 0.5.23
PATCHES = tuple(
    Patch(
        f"sglang.kernels.ops.{package}.elementwise.fused_gate_sigmoid_mul_add",
        add_gated,
        "around",
        "sglang.srt.managers.scheduler",
        only_on_cpu_host=True,
        in_some_releases=True,
    )
    for package in _PACKAGES
)
