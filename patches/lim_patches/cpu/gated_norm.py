"""Norms the output of gated delta net layers without Triton: SGLang does so on CPUs with AMX only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lim_patches.patch import Patch

if TYPE_CHECKING:
    import torch


def norm_and_gate(
    x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float, activation: str
) -> torch.Tensor:
    """RMS norm over the last dimension, then the gate, in float32.

    Args:
        x, gate: [..., dim].
        weight: [dim].
        activation: of the gate: ``silu``, by the name of ``swish``, too, or ``sigmoid``.

    Returns:
        As ``x``.
    """
    from torch.nn import functional

    values, gate = x.float(), gate.float()
    normed = functional.rms_norm(values, weight.shape, weight.float(), eps)
    return (normed * (gate.sigmoid() if activation == "sigmoid" else functional.silu(gate))).to(x.dtype)


def rms_norm_gated(
    original: Callable[..., Any],
    x: torch.Tensor,
    g: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str = "swish",
    residual: torch.Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Any:
    """Qwen3-Next's; what it does not ask for is SGLang's."""
    if bias is None and residual is None and not prenorm:
        return norm_and_gate(x, g, weight, eps, activation)
    return original(x, g, weight, bias, activation, residual, prenorm, residual_in_fp32, eps)


def layernorm_fn(
    original: Callable[..., Any],
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    z: torch.Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
    activation: str = "swish",
) -> Any:
    """Qwen3.5's; what it does not ask for is SGLang's."""
    if z is not None and bias is None and group_size is None and norm_before_gate and is_rms_norm:
        return norm_and_gate(x, z, weight, eps, activation)
    return original(x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm, activation)


_FOLDER = "sglang.kernels.ops.attention.fla"
_SCHEDULER = "sglang.srt.managers.scheduler"
PATCHES = (
    Patch(f"{_FOLDER}.fused_norm_gate.rms_norm_gated", rms_norm_gated, "around", _SCHEDULER, only_on_cpu_host=True),
    Patch(f"{_FOLDER}.layernorm_gated.layernorm_fn", layernorm_fn, "around", _SCHEDULER, only_on_cpu_host=True),
)
