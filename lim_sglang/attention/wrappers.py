"""The attention of SELECT and SPARSE layers on a GPU: objects that are called like FlashInfer's decode wrappers.

There are two for SPARSE layers: the split-KV kernel where requests are few and its launches are what counts, FlashInfer
elsewhere; ``AttentionShape.split_kv_batch`` says up to which batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lim_kernels.attend.launch import KVCache, Requests, attend
from lim_kernels.select.budget import BudgetParts
from lim_kernels.select.launch import SelectLayer, SlotIndex
from lim_sglang.attention.buffers import SPARSE_LAUNCH, AttentionShape, StepBuffers
from lim_sglang.attention.flashinfer_sparse import FlashInferSparse


@dataclass(frozen=True)
class SelectWrapper:
    """The attention of a SELECT layer to all slots of ``dense``, and the selection, which writes the sets' slots."""

    buffers: StepBuffers
    parts: BudgetParts
    dense: Any

    def forward(self, q: Tensor, kv_cache: tuple[Tensor, Tensor], **scales: Any) -> Tensor:
        """Attend and select with one query token per request: [B, H, D]; ``scales`` as for FlashInfer's ``run``."""
        buffers, dense = self.buffers, self.dense
        slots = dense._paged_kv_indptr_buf, dense._paged_kv_indices_buf
        layer = SelectLayer(
            q,
            scale_cache(kv_cache, **scales),
            SlotIndex(*slots, buffers.sparse_indptr, buffers.sparse_indices),
            buffers.out[: len(q)],
            self.parts,
            buffers.select,
            buffers.attend,
            exchange=buffers.exchange,
        )
        layer.run()
        return layer.out


@dataclass(frozen=True)
class SplitKVWrapper:
    """The attention of a SPARSE layer to the sets' slots, by the split-KV kernel."""

    buffers: StepBuffers

    def forward(self, q: Tensor, kv_cache: tuple[Tensor, Tensor], **scales: Any) -> Tensor:
        """Attend with one query token per request: [B, H, D]; ``scales`` as for FlashInfer's ``run``."""
        buffers = self.buffers
        out = buffers.out[: len(q)]
        requests = Requests(buffers.sparse_indptr, buffers.sparse_indices, 0, len(q))
        attend(q, scale_cache(kv_cache, **scales), requests, out, buffers.attend, SPARSE_LAUNCH)
        return out


def scale_cache(
    kv_cache: tuple[Tensor, Tensor],
    sm_scale: float,
    logits_soft_cap: float | None = None,
    k_scale: float | None = None,
    v_scale: float | None = None,
) -> KVCache:
    """A layer's cache with the scales that SGLang gives to FlashInfer's wrappers."""
    k_scale, v_scale = (1.0 if scale is None else scale for scale in (k_scale, v_scale))
    return KVCache(*kv_cache, sm_scale * k_scale, v_scale, logits_soft_cap or 0.0)


class SparseWrappers:
    """The wrappers of the SPARSE layers, by batch size.

    Args:
        buffers: the step's, whose sets are read.
        float_workspace, budget: those of ``FlashInferSparse``.
    """

    def __init__(self, buffers: StepBuffers, float_workspace: Tensor, budget: int, shape: AttentionShape) -> None:
        self.largest_split_kv = shape.split_kv_batch
        self.split_kv = SplitKVWrapper(buffers)
        indices = buffers.sparse_indptr, buffers.sparse_indices
        self.flashinfer = FlashInferSparse(float_workspace, *indices, budget, shape)

    def wrapper(self, batch: int, *, for_graph: bool) -> Any:
        """The wrapper for a step of ``batch`` requests, one that is captured or one without a graph."""
        if batch <= self.largest_split_kv:
            return self.split_kv
        return self.flashinfer.wrapper_for_graph(batch) if for_graph else self.flashinfer.wrapper_without_graph(batch)
