"""Who attends in SELECT and SPARSE layers on a GPU: objects that are called like FlashInfer's decode wrappers.

Two attend in SPARSE layers: the split-KV kernel where requests are few and its launches are what counts, FlashInfer
elsewhere; ``AttentionShape.split_kv_batch`` says up to which batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lim_kernels.attend.launch import KVCache, Requests, attend
from lim_kernels.select.budget import BudgetSplit
from lim_kernels.select.launch import SelectLayer, SlotIndex
from lim_sglang.attention.buffers import SPARSE_LAUNCH, AttentionShape, StepBuffers
from lim_sglang.attention.flashinfer_sparse import FlashInferSparse


@dataclass(frozen=True)
class SelectWrapper:
    """Attends to everything and selects: the slots of ``dense`` are read, those of the sets written."""

    buffers: StepBuffers
    split: BudgetSplit
    dense: Any

    def layer(self, q: Tensor, kv_cache: tuple[Tensor, Tensor], **scales: Any) -> SelectLayer:
        """What ``forward`` runs."""
        buffers, dense = self.buffers, self.dense
        index = SlotIndex(
            dense._paged_kv_indptr_buf, dense._paged_kv_indices_buf, buffers.sparse_indptr, buffers.sparse_indices
        )
        cache = scaled(kv_cache, **scales)
        return SelectLayer(
            q,
            cache,
            index,
            buffers.out[: len(q)],
            self.split,
            buffers.select,
            buffers.attend,
            exchange=buffers.exchange,
        )

    def forward(self, q: Tensor, kv_cache: tuple[Tensor, Tensor], **scales: Any) -> Tensor:
        """[B, H, D]; ``scales`` are those of FlashInfer's ``run``."""
        layer = self.layer(q, kv_cache, **scales)
        layer.run()
        return layer.out


@dataclass(frozen=True)
class SplitKVWrapper:
    """Attends to the sets' slots with the split-KV kernel."""

    buffers: StepBuffers

    def forward(self, q: Tensor, kv_cache: tuple[Tensor, Tensor], **scales: Any) -> Tensor:
        """[B, H, D]; ``scales`` are those of FlashInfer's ``run``."""
        buffers = self.buffers
        out = buffers.out[: len(q)]
        requests = Requests(buffers.sparse_indptr, buffers.sparse_indices, 0, len(q))
        attend(q, scaled(kv_cache, **scales), requests, out, buffers.attend, SPARSE_LAUNCH)
        return out


def scaled(
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
    """Who attends in the SPARSE layers of a batch.

    Args:
        buffers: the step's, whose sets are read.
        float_workspace, budget: those of ``FlashInferSparse``.
    """

    def __init__(self, buffers: StepBuffers, float_workspace: Tensor, budget: int, shape: AttentionShape) -> None:
        self.largest_split_kv = shape.split_kv_batch
        self.split_kv = SplitKVWrapper(buffers)
        indices = buffers.sparse_indptr, buffers.sparse_indices
        self.flashinfer = FlashInferSparse(float_workspace, *indices, budget, shape)

    def wrapper(self, batch: int, *, captured: bool) -> Any:
        """The wrapper for a step of ``batch`` requests, one that is captured or one without a graph."""
        if batch <= self.largest_split_kv:
            return self.split_kv
        return self.flashinfer.captured(batch) if captured else self.flashinfer.without_graph(batch)
