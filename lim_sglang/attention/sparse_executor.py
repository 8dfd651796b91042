"""Who attends to the chosen slots in SPARSE layers on a GPU: one small seam, FlashInfer behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from flashinfer import BatchDecodeWithPagedKVCacheWrapper
from torch import Tensor

INT_WORKSPACE_BYTES = 2 << 20  # FlashInfer's own default is 8 MiB per wrapper; too little fails at plan time


@dataclass(frozen=True)
class AttentionShape:
    """What FlashInfer plans with: head counts on this rank, head size, dtypes, split settings."""

    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    q_dtype: torch.dtype
    kv_dtype: torch.dtype
    fixed_split_size: int | None
    disable_split_kv: bool


class FlashInferSparseExecutor:
    """FlashInfer's paged decode at page size 1 over ``sparse_indices``, one wrapper per batch size.

    Every wrapper is planned once, for ``K`` tokens per request. Shorter requests run on the same plan: the
    tensor-core kernels read the real lengths from ``sparse_indptr`` on the device, and a chunk beyond a request's
    end is empty and drops out when chunks are merged. So no step plans anything on the host.

    Args:
        float_workspace: FlashInfer's split-KV scratch, shared with the dense wrappers: layers run one after another.
        sparse_indptr: [max_batch + 1] int32 on the device.
        sparse_indices: [max_batch * K] int32 on the device.
        budget: ``K``, tokens.
    """

    def __init__(
        self, float_workspace: Tensor, sparse_indptr: Tensor, sparse_indices: Tensor, budget: int, shape: AttentionShape
    ) -> None:
        self.float_workspace = float_workspace
        self.sparse_indptr = sparse_indptr
        self.sparse_indices = sparse_indices
        self.budget = budget
        self.shape = shape
        self._ones = torch.ones(len(sparse_indptr) - 1, dtype=torch.int32, device=sparse_indptr.device)
        self._wrappers: dict[int, Any] = {}

    def wrapper(self, batch: int) -> Any:
        """The planned wrapper for ``batch`` requests, made on first use (never while a graph is being captured)."""
        if batch not in self._wrappers:
            self._wrappers[batch] = self._planned(batch)
        return self._wrappers[batch]

    @property
    def nbytes(self) -> int:
        """Device memory of indices and plans, in bytes; the float workspace is SGLang's."""
        return self.sparse_indptr.nbytes + self.sparse_indices.nbytes + len(self._wrappers) * INT_WORKSPACE_BYTES

    def _planned(self, batch: int) -> Any:
        device = self.sparse_indptr.device
        wrapper = BatchDecodeWithPagedKVCacheWrapper(
            self.float_workspace,
            "NHD",
            backend="fa2",
            use_cuda_graph=True,
            use_tensor_cores=True,  # the other path reads out of bounds when a request is shorter than planned
            paged_kv_indptr_buffer=self.sparse_indptr[: batch + 1],
            paged_kv_indices_buffer=self.sparse_indices,
            paged_kv_last_page_len_buffer=self._ones[:batch],
        )
        wrapper.reset_workspace_buffer(
            self.float_workspace, torch.empty(INT_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        )
        shape = self.shape
        wrapper.plan(
            torch.arange(batch + 1, dtype=torch.int32) * self.budget,  # on the host: plan() would copy it there
            torch.empty(0, dtype=torch.int32, device=device),  # filled by the selection kernels
            torch.ones(batch, dtype=torch.int32),
            shape.num_qo_heads,
            shape.num_kv_heads,
            shape.head_dim,
            1,
            q_data_type=shape.q_dtype,
            kv_data_type=shape.kv_dtype,
            fixed_split_size=shape.fixed_split_size,
            disable_split_kv=shape.disable_split_kv,
        )
        return wrapper
