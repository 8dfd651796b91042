"""Checks, buffers and launches of attention and its merge. Buffers are made once; a launch allocates nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lim_kernels.attend.config import AttendConfig, HeadShape, fit_config
from lim_kernels.attend.kernel import attend_kernel, merge_kernel
from lim_kernels.chain import launch_options
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
        splits = q_len * max(n * config.kv_splits(n, num_kv_heads) for n in range(1, max_requests + 1))
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
        ranks: [rows, N] int32, the tokens' unified ranks, reset.
        budget, sinks, recent: which requests, and which of their positions are candidates.
    """

    scores: Tensor
    maxima: Tensor
    ranks: Tensor
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
        ValueError: a shape, dtype, stride or device is not as above, or the heads are too large for the GPU.
    """
    check_attend(q, cache, requests, out, workspace, config)
    if sink is not None and requests.q_len > 1:
        raise ValueError(f"scores of {requests.q_len} query tokens per request: expected 1 where a layer selects")
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = cache.keys.shape[1]
    heads = HeadShape(head_dim, num_heads // num_kv_heads, q.dtype, cache.keys.dtype, requests.q_len)
    config = fit_config(config, heads, gpu_of(q.device))
    kv_splits = config.kv_splits(requests.size, num_kv_heads)
    _launch_attend(q, cache, requests, workspace, config, heads, kv_splits, sink)
    merge_kernel[(num_heads, requests.size * requests.q_len)](
        partial=workspace.partial,
        partial_lse=workspace.lse,
        kv_indptr=requests.kv_indptr,
        out=out,
        first_request=requests.first,
        kv_splits=kv_splits,
        value_scale=cache.value_scale,
        num_heads=num_heads,
        out_stride_b=out.stride(0),
        out_stride_h=out.stride(1),
        Q_LEN=requests.q_len,
        HEAD_DIM=head_dim,
        HEAD_DIM_PAD=heads.head_dim_pad,
        BLOCK_N=config.block_n,
        MAX_SPLITS=config.max_splits,
        num_warps=4,
        **launch_options(q.device),
    )


def _launch_attend(
    q: Tensor,
    cache: KVCache,
    requests: Requests,
    workspace: AttendWorkspace,
    config: AttendConfig,
    heads: HeadShape,
    kv_splits: int,
    sink: ScoreSink | None,
) -> None:
    """Launch the attention of every split, which leaves its part of the output in ``workspace``."""
    gpu = gpu_of(q.device)
    keys, values = (_readable(tensor, gpu) for tensor in (cache.keys, cache.values))
    num_kv_heads = keys.shape[1]
    capped = cache.logits_soft_cap > 0
    logits_scale = cache.sm_scale / cache.logits_soft_cap if capped else cache.sm_scale * math.log2(math.e)
    attend_kernel[(num_kv_heads * heads.q_blocks, kv_splits, requests.size)](
        q=q,
        k_cache=keys,
        v_cache=values,
        kv_indptr=requests.kv_indptr,
        kv_indices=requests.kv_indices,
        partial=workspace.partial,
        partial_lse=workspace.lse,
        scores=sink.scores if sink else workspace.lse,  # without a sink never dereferenced
        maxima=sink.maxima if sink else workspace.lse,
        ranks=sink.ranks if sink else workspace.lse,
        first_request=requests.first,
        kv_splits=kv_splits,
        group=heads.group,
        logits_scale=logits_scale,
        soft_cap=cache.logits_soft_cap * math.log2(math.e),
        q_stride_b=q.stride(0),
        q_stride_h=q.stride(1),
        k_stride_t=keys.stride(0),
        k_stride_h=keys.stride(1),
        v_stride_t=values.stride(0),
        v_stride_h=values.stride(1),
        num_heads=q.shape[1],
        scores_stride_b=sink.scores.stride(0) if sink else 0,
        scores_stride_h=sink.scores.stride(1) if sink else 0,
        maxima_stride_b=sink.maxima.stride(0) if sink else 0,
        maxima_stride_h=sink.maxima.stride(1) if sink else 0,
        ranks_stride_b=sink.ranks.stride(0) if sink else 0,
        budget=sink.budget if sink else 0,
        sinks=sink.sinks if sink else 0,
        recent=sink.recent if sink else 0,
        Q_LEN=requests.q_len,
        Q_TILE=heads.q_tile,
        ROWS=heads.rows_pad,
        HEAD_DIM=heads.head_dim,
        HEAD_DIM_PAD=heads.head_dim_pad,
        BLOCK_N=config.block_n,
        STAGES=config.stages,
        CAPPED=capped,
        UPCAST=q.dtype == torch.float32,
        SELECTS=sink is not None,
        SPAN=sink.span if sink else 16,
        num_warps=config.warps,
        **launch_options(q.device, follows=False),
    )


def _readable(cache: Tensor, gpu: Gpu) -> Tensor:
    """Keys or values as the kernel takes them: of fp8 the bytes where the GPU has no such type."""
    return cache if gpu.has_fp8 or cache.dtype != torch.float8_e4m3fn else cache.view(torch.uint8)


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
    splits = requests.size * config.kv_splits(requests.size, keys.shape[1])
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
