"""Decode attention and verification in plain torch: the definition, which the CPU backend serves with.

The kernel is tested against it.
"""

import torch
from torch import Tensor


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    sm_scale: float,
    logits_soft_cap: float = 0.0,
) -> Tensor:
    """Every request's query token attends to its cached tokens, all heads of a group to one KV head.

    Args:
        q: [B, H, D], any floating dtype.
        k_cache: [slots, Hk, D]; query head ``h`` reads KV head ``h // (H // Hk)``.
        v_cache: [slots, Hk, Dv].
        kv_indptr: [>= B + 1] ends of the requests' slots in ``kv_indices``, position order.
        sm_scale: factor of ``q . k`` before the softmax.
        logits_soft_cap: ``c``, if above 0: logits ``x`` become ``c * tanh(x / c)``.

    Returns:
        [B, H, Dv] float32; zeros for a request without tokens.
    """
    output = torch.zeros(*q.shape[:2], v_cache.shape[2], device=q.device)
    ends = kv_indptr.tolist()
    for request, query in enumerate(q):
        slots = kv_indices[ends[request] : ends[request + 1]]
        if len(slots):
            output[request] = _attend(query[None], k_cache[slots], v_cache[slots], sm_scale, logits_soft_cap)[0]
    return output


def verify_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    req_to_token: Tensor,
    rows: Tensor,
    prefix_lens: Tensor,
    sm_scale: float,
    logits_soft_cap: float = 0.0,
) -> Tensor:
    """Every request's last ``T`` tokens attend, each to itself and all tokens before it.

    Their own keys and values are in the cache already, behind those of the prefix.

    Args:
        q: [B, T, H, D], any floating dtype.
        k_cache, v_cache, sm_scale, logits_soft_cap: see ``decode_attention``.
        req_to_token: [rows, >= prefix + T] int32 or int64, slots of requests' tokens by position.
        rows: [B] row of every request in ``req_to_token``.
        prefix_lens: [B] tokens before the ``T``.

    Returns:
        [B, T, H, Dv] float32.
    """
    output = torch.empty(*q.shape[:3], v_cache.shape[2], device=q.device)
    for request, (row, prefix) in enumerate(zip(rows.tolist(), prefix_lens.tolist(), strict=True)):
        slots = req_to_token[row, : prefix + q.shape[1]]
        output[request] = _attend(q[request], k_cache[slots], v_cache[slots], sm_scale, logits_soft_cap)
    return output


def _attend(q: Tensor, keys: Tensor, values: Tensor, sm_scale: float, logits_soft_cap: float) -> Tensor:
    """The last ``T`` of ``n`` tokens attend in float32: [T, H, D], [n, Hk, D] and [n, Hk, Dv] to [T, H, Dv].

    A KV head's queries are rows of one product: its keys are neither repeated for the group nor for the tokens.
    """
    q_len, num_tokens, num_kv_heads = len(q), *keys.shape[:2]
    rows = q.float().unflatten(1, (num_kv_heads, -1)).transpose(0, 1).flatten(1, 2)  # [Hk, T * group, D]
    logits = torch.matmul(rows, keys.float().permute(1, 2, 0)) * sm_scale  # [Hk, T * group, n]
    if logits_soft_cap > 0:
        logits = logits_soft_cap * torch.tanh(logits / logits_soft_cap)
    later = torch.ones(q_len, q_len, dtype=torch.bool, device=q.device).triu(1)[:, None]  # [T, 1, T]
    logits.unflatten(1, (q_len, -1))[..., num_tokens - q_len :].masked_fill_(later, float("-inf"))
    output = torch.matmul(logits.softmax(-1), values.float().transpose(0, 1))  # [Hk, T * group, Dv]
    return output.unflatten(1, (q_len, -1)).transpose(0, 1).flatten(1, 2)
