"""Checks, buffers and launches of attention and its merge. Buffers are made once; a launch allocates nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lim_kernels.attend.config import AttendConfig, HeadShape, fitted
from lim_kernels.attend.kernel import attend_kernel, merge_kernel
from lim_kernels.chain import chained
from lim_kernels.gpu import Gpu, gpu_of

Q_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class AttendWorkspace:
    """What splits leave for the merge; launches share it, one after another.

    Attributes:
        partial: [splits of all requests' query tokens, H, D] float32.
        lse: [splits of all requests' query tokens, H] float32.
    """

    partial: Tensor
    lse: Tensor

    @classmethod
    def allocate(
        cls,
        max_requests: int,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        device: torch.device | str,
        config: AttendConfig,
        q_len: int = 1,
    ) -> AttendWorkspace:
        """Make buffers for launches of 1 to ``max_requests`` requests with up to ``q_len`` query tokens each."""
        splits = q_len * max(n * config.splits(n, num_kv_heads) for n in range(1, max_requests + 1))
        return cls(
            torch.empty(splits, num_qo_heads, head_dim, dtype=torch.float32, device=device),
            torch.empty(splits, num_qo_heads, dtype=torch.float32, device=device),
        )

    @property
    def nbytes(self) -> int:
        """Device memory, in bytes."""
        return self.partial.nbytes + self.lse.nbytes


class KVCache(NamedTuple):
    """One layer's cache and how its scores become weights.

    Attributes:
        keys, values: [slots, Hk, D], strided views allowed, the last dimension contiguous.
        sm_scale: factor of ``q . k`` before the softmax, a scale of quantised keys included.
        value_scale: factor of the output, for quantised values.
        logits_soft_cap: ``c * tanh(x / c)`` of the logits where above 0.
    """

    keys: Tensor
    values: Tensor
    sm_scale: float
    value_scale: float = 1.0
    logits_soft_cap: float = 0.0


class ScoreSink(NamedTuple):
    """Where a SELECT layer's scores go, for requests beyond the budget.

    Attributes:
        scores: [rows, H, N] int32, ordered as the scores are; N a multiple of every tile.
        maxima: [rows, H, N // span] int32.
        keys: [rows, N] int32, reset.
        budget, sinks, recent: which requests, and which of their positions are candidates.
    """

    scores: Tensor
    maxima: Tensor
    keys: Tensor
    budget: int
    sinks: int
    recent: int

    @property
    def span(self) -> int:
        """Positions that share a maximum."""
        return self.scores.shape[2] // self.maxima.shape[2]


class Requests(NamedTuple):
    """``size`` requests of a batch from number ``first`` on, their slots, and how many query tokens each has.

    Attributes:
        kv_indptr: [>= B + 1] int32, ends of the requests' slots in ``kv_indices``.
        kv_indices: int32, slots in position order.
        q_len: query tokens of every request: its last ones, whose slots are listed too.
    """

    kv_indptr: Tensor
    kv_indices: Tensor
    first: int
    size: int
    q_len: int = 1


def attend(
    q: Tensor,
    cache: KVCache,
    requests: Requests,
    out: Tensor,
    workspace: AttendWorkspace,
    config: AttendConfig,
    sink: ScoreSink | None = None,
) -> None:
    """Attend with the last ``T`` tokens of every request to its slots, each token to itself and those before it.

    See ``reference.decode_attention`` for ``T`` = ``requests.q_len`` = 1, ``reference.verify_attention`` for more.

    Args:
        q: [B * T, H, D] bfloat16, float16 or float32; the last dimension contiguous.
        cache: keys and values in the dtype of ``q`` or float8_e4m3fn.
        requests: each has no slots, and then zeros come out, or ``T`` at least.
        out: [B * T, H, D], written for these requests only; the last dimension contiguous.
        workspace: for at least ``size`` requests of ``T`` query tokens.
        sink: where the scores go if this is a SELECT layer; its rows belong to these requests; ``T`` is 1.

    Raises:
        ValueError: a shape, dtype, stride or device is not as above, or the heads are too large for the gpu.
    """
    check_attend(q, cache, requests, out, workspace, config)
    if sink is not None and requests.q_len > 1:
        raise ValueError(f"scores of {requests.q_len} query tokens per request: expected 1 where a layer selects")
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = cache.keys.shape[1]
    heads = HeadShape(head_dim, num_heads // num_kv_heads, q.dtype, cache.keys.dtype, requests.q_len)
    gpu = gpu_of(q.device)
    config = fitted(config, heads, gpu)
    keys, values = (_readable(tensor, gpu) for tensor in (cache.keys, cache.values))
    splits = config.splits(requests.size, num_kv_heads)
    capped = cache.logits_soft_cap > 0
    log2e = 1.0 if capped else math.log2(math.e)
    common: dict[str, Any] = {
        "partial": workspace.partial,
        "partial_lse": workspace.lse,
        "kv_indptr": requests.kv_indptr,
        "first_request": requests.first,
        "num_splits": splits,
        "num_heads": num_heads,
        "Q_LEN": requests.q_len,
        "HEAD_DIM": head_dim,
        "HEAD_DIM_PAD": heads.head_dim_pad,
        "BLOCK_N": config.block_n,
    }
    attend_kernel[(num_kv_heads * heads.q_blocks, splits, requests.size)](
        q,
        keys,
        values,
        kv_indices=requests.kv_indices,
        group=heads.group,
        logits_scale=cache.sm_scale * log2e / (cache.logits_soft_cap if capped else 1.0),
        soft_cap=cache.logits_soft_cap * math.log2(math.e),
        q_stride_b=q.stride(0),
        q_stride_h=q.stride(1),
        k_stride_t=keys.stride(0),
        k_stride_h=keys.stride(1),
        v_stride_t=values.stride(0),
        v_stride_h=values.stride(1),
        Q_TILE=heads.q_tile,
        ROWS=heads.rows_pad,
        STAGES=config.stages,
        CAPPED=capped,
        UPCAST=q.dtype == torch.float32,
        num_warps=config.warps,
        **_sink(sink, workspace),
        **common,
        **chained(q.device, follows=False),
    )
    merge_kernel[(num_heads, requests.size * requests.q_len)](
        out=out,
        value_scale=cache.value_scale,
        out_stride_b=out.stride(0),
        out_stride_h=out.stride(1),
        MAX_SPLITS=config.max_splits,
        num_warps=4,
        **common,
        **chained(q.device),
    )


def _readable(cache: Tensor, gpu: Gpu) -> Tensor:
    """Keys or values as the kernel takes them: of fp8 the bytes where the card has no such type."""
    return cache if gpu.has_fp8 or cache.dtype != torch.float8_e4m3fn else cache.view(torch.uint8)


def _sink(sink: ScoreSink | None, workspace: AttendWorkspace) -> dict[str, Any]:
    if sink is None:
        unused = workspace.lse  # never dereferenced
        strides = dict.fromkeys(
            ["scores_stride_b", "scores_stride_h", "maxima_stride_b", "maxima_stride_h", "keys_stride_b"], 0
        )
        numbers = {"budget": 0, "sinks": 0, "recent": 0}
        return {"scores": unused, "maxima": unused, "keys": unused, "SELECTS": False, "SPAN": 16, **strides, **numbers}
    return {
        "scores": sink.scores,
        "maxima": sink.maxima,
        "keys": sink.keys,
        "scores_stride_b": sink.scores.stride(0),
        "scores_stride_h": sink.scores.stride(1),
        "maxima_stride_b": sink.maxima.stride(0),
        "maxima_stride_h": sink.maxima.stride(1),
        "keys_stride_b": sink.keys.stride(0),
        "budget": sink.budget,
        "sinks": sink.sinks,
        "recent": sink.recent,
        "SELECTS": True,
        "SPAN": sink.span,
    }


def check_attend(
    q: Tensor, cache: KVCache, requests: Requests, out: Tensor, workspace: AttendWorkspace, config: AttendConfig
) -> None:
    """Raise ``ValueError`` with one line where ``attend`` could not run on these tensors."""
    keys, values = cache.keys, cache.values
    if q.ndim != 3 or keys.ndim != 3 or q.shape[2] != keys.shape[2] or q.shape[1] % keys.shape[1]:
        raise ValueError(
            f"q {list(q.shape)} and k_cache {list(keys.shape)}: expected [B * T, H, D] and [slots, Hk, D] with H a "
            "multiple of Hk"
        )
    if values.shape != keys.shape or values.dtype != keys.dtype:
        raise ValueError(f"v_cache {list(values.shape)} of {values.dtype}: expected {list(keys.shape)} of {keys.dtype}")
    if q.dtype not in Q_DTYPES or keys.dtype not in (q.dtype, torch.float8_e4m3fn):
        raise ValueError(f"q of {q.dtype} with k_cache of {keys.dtype}: expected one of {Q_DTYPES} and the same or fp8")
    if out.shape != q.shape:
        raise ValueError(f"out of shape {list(out.shape)}: expected {list(q.shape)}, as q")
    if any(tensor.stride(2) != 1 for tensor in (q, keys, values, out)):
        raise ValueError("q, k_cache, v_cache and out: expected a contiguous last dimension")
    check_indices(q.device, requests[:2], keys, values, out, workspace.lse)
    queries = (requests.first + requests.size) * requests.q_len
    if requests.q_len < 1 or len(q) < queries:
        raise ValueError(
            f"q of {len(q)} rows for requests {requests.first} to {requests.first + requests.size - 1} with "
            f"{requests.q_len} query tokens each: expected {queries} rows at least, and a token at least"
        )
    splits = requests.size * config.splits(requests.size, keys.shape[1])
    needed = [splits * requests.q_len, *q.shape[1:]]
    found = list(workspace.partial.shape)
    if found[0] < needed[0] or found[1:] != needed[1:]:
        raise ValueError(f"workspace for [splits, H, D] = {found}: expected {needed}, with splits at least that")


def check_indices(device: torch.device, indices: Iterable[Tensor], *others: Tensor) -> None:
    """Raise ``ValueError`` unless the indices are contiguous int32, and they and all others are on ``device``."""
    indices = tuple(indices)
    for tensor in indices:
        if tensor.dtype != torch.int32 or not tensor.is_contiguous():
            raise ValueError(f"index of {tensor.dtype}, shape {list(tensor.shape)}: expected contiguous torch.int32")
    if any(tensor.device != device for tensor in (*indices, *others)):
        raise ValueError(f"tensors on several devices: expected all on {device}")
