"""Torch stand-ins for the ``sgl_kernel`` ops that gated delta net layers (Qwen3-Next, Qwen3.5) call on a CPU.

A request's state of one layer lies in a slot of two pools, both written in place: the last inputs of its convolution,
``[slots, channels, width - 1]``, and its memory, ``[slots, value heads, value dim, key dim]``. A slot below 0 is
padding: its tokens come out as zeros and no state changes. ``B`` is requests, ``T`` all their tokens, one request after
the other; ``query_start_loc`` and ``cu_seqlens`` are ``[B + 1]``, where each request starts and the last one ends.
A key head serves the value heads of its group. The rule and its gates are computed in float32. The callers named are
files of ``sglang/srt``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional

_EPSILON = 1e-6  # of the L2 norm


def _requests(slots: torch.Tensor, starts: torch.Tensor) -> Iterator[tuple[int, int, slice]]:
    """Row, slot and tokens of every request that has both."""
    bounds = starts.tolist()
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0 and bounds[row] < bounds[row + 1]:
            yield row, slot, slice(bounds[row], bounds[row + 1])


def _convolve(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None
) -> torch.Tensor:
    """Depthwise convolution of ``[N, channels, width - 1 + L]`` to ``[N, channels, L]``."""
    outputs = functional.conv1d(inputs, weight[:, None], bias, groups=len(weight))
    return functional.silu(outputs) if activation in ("silu", "swish") else outputs


def causal_conv1d_fn_cpu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    activation: str | None,
    conv_states: torch.Tensor,
    has_initial_state: torch.Tensor,
    cache_indices: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens_cpu: Sequence[int],
) -> torch.Tensor:
    """Convolve prompts; ``layers/attention/linear/gdn_backend.py``, ``forward_extend``.

    Args:
        x: [channels, T] of the model's dtype.
        weight, bias: [channels, width] and [channels].
        activation: ``silu``, ``swish`` or None.
        conv_states: the pool of last inputs, of a dtype of its own.
        has_initial_state: [B] bool, False where a request's inputs before these are zeros, whatever its slot holds.
        cache_indices: [B] slots.
        seq_lens_cpu: [B] tokens, as ``query_start_loc`` has them.

    Returns:
        [channels, T], dtype of ``x``.
    """
    out = torch.zeros_like(x)
    for row, slot, tokens in _requests(cache_indices, query_start_loc):
        held = conv_states[slot]
        before = held.to(x.dtype) if has_initial_state[row] else x.new_zeros(held.shape)
        inputs = torch.cat((before, x[:, tokens]), dim=1)
        out[:, tokens] = _convolve(inputs[None], weight, bias, activation)[0]
        held.copy_(inputs[:, -held.shape[1] :])
    return out


def causal_conv1d_update_cpu(
    x: torch.Tensor,
    conv_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    *,
    conv_state_indices: torch.Tensor,
) -> torch.Tensor:
    """Convolve one more token of each request; ``layers/attention/linear/gdn_backend.py``, ``forward_decode``.

    Args:
        x: [B, channels] of the model's dtype.
        conv_state_indices: [B] slots; the rest as in ``causal_conv1d_fn_cpu``.

    Returns:
        [B, channels], dtype of ``x``.
    """
    out = torch.zeros_like(x)
    rows = conv_state_indices >= 0
    slots = conv_state_indices[rows].long()
    inputs = torch.cat((conv_states[slots].to(x.dtype), x[rows, :, None]), dim=2)
    out[rows] = _convolve(inputs, weight, bias, activation)[..., 0]
    conv_states[slots] = inputs[..., 1:].to(conv_states.dtype)
    return out


def _step(
    memory: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
) -> torch.Tensor:
    """The gated delta rule for one token.

    Args:
        memory: [heads, value dim, key dim], written in place.
        query, key: [heads, key dim].
        value: [heads, value dim].
        decay, beta: [heads], both from 0 to 1: how much of the memory stays, and how much of the error is corrected.

    Returns:
        [heads, value dim].
    """
    memory *= decay[:, None, None]
    recalled = (memory @ key[..., None])[..., 0]
    correction = beta[:, None] * (value - recalled)
    memory += correction[..., None] * key[:, None, :]
    return (memory @ query[..., None])[..., 0]


def _gated_delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    memory: torch.Tensor,
    *,
    normalize: bool,
) -> torch.Tensor:
    """All tokens of one request, one by one.

    Args:
        query, key: [T, key heads, key dim].
        value: [T, value heads, value dim].
        log_decay, beta: [T, value heads].
        memory: [value heads, value dim, key dim], written in place.
        normalize: divide each query and key by its length first.

    Returns:
        [T, value heads, value dim] float32.
    """
    query, key, value, log_decay, beta = (each.float() for each in (query, key, value, log_decay, beta))
    if normalize:
        query, key = (each * (each.square().sum(-1, keepdim=True) + _EPSILON).rsqrt() for each in (query, key))
    group = value.shape[1] // key.shape[1]
    query = (query * query.shape[-1] ** -0.5).repeat_interleave(group, dim=1)
    key = key.repeat_interleave(group, dim=1)
    latest = memory.to(torch.float32, copy=True)
    steps = zip(query, key, value, log_decay.exp(), beta, strict=True)
    out = torch.stack([_step(latest, *step) for step in steps])
    memory.copy_(latest)
    return out


def chunk_gated_delta_rule_cpu(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    *,
    initial_state: torch.Tensor,
    initial_state_indices: torch.Tensor,
    cu_seqlens: torch.Tensor,
    head_first: bool,
    use_qk_l2norm_in_kernel: bool,
) -> tuple[torch.Tensor, None, None]:
    """Run prompts through the gated delta rule; ``layers/attention/linear/kernels/gdn_triton.py``, ``extend``.

    Args:
        q, k: [1, T, key heads, key dim].
        v: [1, T, value heads, value dim].
        g, beta: [1, T, value heads], as ``fused_gdn_gating_cpu`` returns them.
        initial_state: the pool of memories; every request starts from what its slot holds.
        initial_state_indices: [B] slots.
        head_first: always False: tokens come before heads.
        use_qk_l2norm_in_kernel: divide each query and key by its length first.

    Returns:
        [1, T, value heads, value dim], dtype of ``v``. The other two, states apart from the pool, are None: a CPU's
        caller has no use for them.
    """
    out = torch.zeros_like(v)
    for _, slot, tokens in _requests(initial_state_indices, cu_seqlens):
        out[0, tokens] = _gated_delta_rule(
            q[0, tokens],
            k[0, tokens],
            v[0, tokens],
            g[0, tokens],
            beta[0, tokens],
            initial_state[slot],
            normalize=use_qk_l2norm_in_kernel,
        ).to(v.dtype)
    return out, None, None


def fused_gdn_gating_cpu(
    A_log: torch.Tensor, a: torch.Tensor, b: torch.Tensor, dt_bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gates of every token; ``layers/attention/linear/gdn_backend.py``, ``forward_extend``.

    Args:
        A_log, dt_bias: [value heads].
        a, b: [T, value heads].

    Returns:
        The logarithm of the decay, float32, and beta, dtype of ``b``; both [1, T, value heads].
    """
    log_decay = -A_log.float().exp() * functional.softplus(a.float() + dt_bias.float())
    return log_decay[None], b.sigmoid()[None]


def fused_sigmoid_gating_delta_rule_update_cpu(
    *,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    initial_state_source: torch.Tensor,
    initial_state_indices: torch.Tensor,
    cu_seqlens: torch.Tensor,
    use_qk_l2norm_in_kernel: bool,
    softplus_beta: float,
    softplus_threshold: float,
) -> torch.Tensor:
    """Gates and the gated delta rule of a decode step; ``layers/attention/linear/kernels/gdn_triton.py``, ``decode``.

    Args:
        softplus_beta, softplus_threshold: always 1 and 20, torch's own.
        A_log, dt_bias, q, k, v, a, b, initial_state_source, initial_state_indices, cu_seqlens: as in
            ``fused_gdn_gating_cpu`` and, as ``initial_state``, in ``chunk_gated_delta_rule_cpu``.

    Returns:
        [1, T, value heads, value dim], dtype of ``v``.
    """
    g, beta = fused_gdn_gating_cpu(A_log, a, b, dt_bias)
    out, _, _ = chunk_gated_delta_rule_cpu(
        q,
        k,
        v,
        g,
        beta,
        initial_state=initial_state_source,
        initial_state_indices=initial_state_indices,
        cu_seqlens=cu_seqlens,
        head_first=False,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
    )
    return out


def fused_qkvzba_split_reshape_cat_contiguous_cpu(
    mixed_qkvz: torch.Tensor,
    mixed_ba: torch.Tensor,
    num_heads_qk: int,
    num_heads_v: int,
    head_qk: int,
    head_v: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take the projections of a layer's input apart; ``models/qwen3_5.py``.

    Args:
        mixed_qkvz: [T, all of q, k, v and z, one after the other].
        mixed_ba: [T, all of b and a].

    Returns:
        q, k and v as they lie, [T, channels of the convolution]; z, [T, value heads, value dim]; b and a, both
        [T, value heads]. All are contiguous.
    """
    value_dim = num_heads_v * head_v
    qkv, z = mixed_qkvz.split((mixed_qkvz.shape[1] - value_dim, value_dim), dim=1)
    b, a = mixed_ba.split(num_heads_v, dim=1)
    return qkv.contiguous(), z.reshape(-1, num_heads_v, head_v).contiguous(), b.contiguous(), a.contiguous()


def _gemma_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm over the last dimension, whose weights are held as their distance from 1."""
    values = x.float()
    scale = (values.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (values * scale * (1 + weight.float())).to(x.dtype)


def fused_qk_gemma_rmsnorm_cpu(
    q: torch.Tensor, k: torch.Tensor, q_weight: torch.Tensor, k_weight: torch.Tensor, eps: float, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm queries and keys head by head; ``models/qwen3_5.py``, layers that attend.

    Args:
        q, k: [T, heads * head_dim], each with its own number of heads.
        q_weight, k_weight: [head_dim].

    Returns:
        Both as [T * heads, head_dim], of their own dtypes.
    """
    return _gemma_norm(q.reshape(-1, head_dim), q_weight, eps), _gemma_norm(k.reshape(-1, head_dim), k_weight, eps)


def fused_qk_gemma_rmsnorm_with_gate_cpu(
    q_gate: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    eps: float,
    head_dim: int,
    num_heads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same where each query head is followed by its output gate; ``models/qwen3_5.py``.

    Args:
        q_gate: [T, num_heads * 2 * head_dim].

    Returns:
        Queries and keys as above, and the gates, [T * num_heads, head_dim].
    """
    q, gate = q_gate.reshape(-1, 2, head_dim).unbind(1)
    return *fused_qk_gemma_rmsnorm_cpu(q, k, q_weight, k_weight, eps, head_dim), gate.contiguous()


def fused_sigmoid_mul_cpu(x: torch.Tensor, gate: torch.Tensor, inplace: bool = True) -> torch.Tensor:
    """Gate the output of attention; ``models/qwen3_5.py``.

    Args:
        x: [T, channels], written in place unless ``inplace`` is False.
        gate: as many values as ``x``, [T, channels] or [T, heads, head dim].

    Returns:
        What was written; 0.5.16 reads it, 0.5.23 reads ``x``.
    """
    gated = x * gate.reshape(x.shape).sigmoid()
    return x.copy_(gated) if inplace else gated


MAMBA: tuple[Callable[..., Any], ...] = (causal_conv1d_fn_cpu, causal_conv1d_update_cpu, chunk_gated_delta_rule_cpu)
"""The functions of module ``sgl_kernel.mamba``."""
OPS: tuple[Callable[..., Any], ...] = (
    fused_gdn_gating_cpu,
    fused_sigmoid_gating_delta_rule_update_cpu,
    fused_qkvzba_split_reshape_cat_contiguous_cpu,
    fused_qk_gemma_rmsnorm_cpu,
    fused_qk_gemma_rmsnorm_with_gate_cpu,
    fused_sigmoid_mul_cpu,
)
"""The functions of ``torch.ops.sgl_kernel``."""


def register_ops() -> None:
    """Put ``OPS`` under their names into ``torch.ops.sgl_kernel``, as plain functions: nothing here is compiled."""
    for op in OPS:
        setattr(torch.ops.sgl_kernel, op.__name__, op)
