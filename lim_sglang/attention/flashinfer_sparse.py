"""FlashInfer's paged decode over the token sets of a batch."""

from __future__ import annotations

from typing import Any

import torch
from flashinfer import BatchDecodeWithPagedKVCacheWrapper
from torch import Tensor

from lim_sglang.attention.buffers import AttentionShape


def int_workspace_bytes(batch: int) -> int:
    """Device memory that FlashInfer's plan for ``batch`` decoding requests needs, rounded up; its default is 8 MiB.

    A tile takes 13 bytes and a request 8 (``scheduler.cuh``, ``PrefillPlan``). There are at most two tiles a request,
    or, split, two for every multiprocessor. Too little would fail while planning.
    """
    return (64 << 10) + 64 * batch


class FlashInferSparse:
    """FlashInfer's paged decode at page size 1 over ``sparse_indices``.

    A plan is for ``K`` tokens per request and depends on the batch size only. Shorter requests run on the same plan:
    the tensor-core kernels read the real lengths from ``sparse_indptr`` on the device, and a chunk beyond a request's
    end is empty and drops out when chunks are merged. So no captured step plans anything on the host.

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
        self._for_graphs: dict[int, Any] = {}
        self._without_graph: list[Any] = []
        self._planned_batch = 0

    def wrapper_for_graph(self, batch: int) -> Any:
        """The wrapper that graphs of ``batch`` requests hold, planned on first use (never during a capture)."""
        if batch not in self._for_graphs:
            wrapper = self._make(batch, use_cuda_graph=True)
            self._plan(wrapper, batch)
            self._for_graphs[batch] = wrapper
        return self._for_graphs[batch]

    def wrapper_without_graph(self, batch: int) -> Any:
        """A wrapper for a step of ``batch`` requests without a graph: one of two that serve every batch size.

        A plan travels to the device from pinned memory while the host goes on. SGLang launches a step while the one
        before it runs, so the memory of that one's plan must not be written to: the two take turns.
        """
        if not self._without_graph:
            self._without_graph = [self._make(len(self._ones), use_cuda_graph=False) for _ in range(2)]
        if batch != self._planned_batch:
            self._without_graph.reverse()
            self._plan(self._without_graph[0], batch)
            # The plan has put its own lengths there. Those of the step are on the device.
            self._without_graph[0]._paged_kv_indptr_buf = self.sparse_indptr[: batch + 1]
            self._without_graph[0]._paged_kv_indices_buf = self.sparse_indices
            self._planned_batch = batch
        return self._without_graph[0]

    def _make(self, batch: int, *, use_cuda_graph: bool) -> Any:
        """A wrapper for up to ``batch`` requests, or with graphs for exactly so many."""
        wrapper = BatchDecodeWithPagedKVCacheWrapper(
            self.float_workspace,
            "NHD",
            backend="fa2",
            use_cuda_graph=use_cuda_graph,
            use_tensor_cores=True,  # the other path reads out of bounds when a request is shorter than planned
            paged_kv_indptr_buffer=self.sparse_indptr[: batch + 1],
            paged_kv_indices_buffer=self.sparse_indices,
            paged_kv_last_page_len_buffer=self._ones[:batch],
        )
        device = self.sparse_indptr.device
        wrapper.reset_workspace_buffer(
            self.float_workspace, torch.empty(int_workspace_bytes(batch), dtype=torch.uint8, device=device)
        )
        return wrapper

    def _plan(self, wrapper: Any, batch: int) -> None:
        shape = self.shape
        wrapper.plan(
            torch.arange(batch + 1, dtype=torch.int32) * self.budget,  # on the host: plan() would copy it there
            torch.empty(0, dtype=torch.int32, device=self.sparse_indptr.device),  # filled by the selection kernels
            torch.ones(batch, dtype=torch.int32),
            shape.num_qo_heads,
            shape.num_kv_heads,
            shape.head_dim,
            1,
            q_data_type=shape.q_dtype,
            kv_data_type=shape.kv_dtype,
        )
