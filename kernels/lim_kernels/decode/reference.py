"""Decode attention in plain torch: the definition that the kernel is tested against."""

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
        k_cache, v_cache: [slots, Hk, D]; query head ``h`` reads KV head ``h // (H // Hk)``.
        kv_indptr: [>= B + 1] ends of the requests' slots in ``kv_indices``, position order.
        sm_scale: factor of ``q . k`` before the softmax.
        logits_soft_cap: ``c``, if above 0: logits ``x`` become ``c * tanh(x / c)``.

    Returns:
        [B, H, D] float32; zeros for a request without tokens.
    """
    output = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    ends = kv_indptr.tolist()
    for request, query in enumerate(q.float()):
        slots = kv_indices[ends[request] : ends[request + 1]].long()
        if not len(slots):
            continue
        group = q.shape[1] // k_cache.shape[1]
        keys, values = (cache[slots].float().repeat_interleave(group, 1) for cache in (k_cache, v_cache))
        logits = torch.einsum("hd,nhd->hn", query, keys) * sm_scale
        if logits_soft_cap > 0:
            logits = logits_soft_cap * torch.tanh(logits / logits_soft_cap)
        output[request] = torch.einsum("hn,nhd->hd", logits.softmax(-1), values)
    return output
