"""Who attends in SELECT and SPARSE layers on a GPU: objects that are called like FlashInfer's decode wrappers.

Two attend in SPARSE layers: the split-KV kernel where requests are few and its launches are what counts, FlashInfer
elsewhere; ``AttentionShape.split_kv_batch`` says up to which batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from flashinfer import BatchDecodeWithPagedKVCacheWrapper
from torch import Tensor

from lim_kernels.decode.config import AttendConfig, HeadShape
from lim_kernels.decode.launch import AttendWorkspace, KVCache, Requests, attend
from lim_kernels.select.budget import BudgetSplit
from lim_kernels.select.launch import LaunchConfig, SelectLayer, SlotIndex
from lim_kernels.select.shard import Exchange, HeadShard
from lim_kernels.select.workspace import SelectWorkspace
from lim_sglang.host.support import UnsupportedError

SPLIT_KV_HEADS = 128  # requests times KV heads; measured on an H100 by bench.speed.decode_attention
SPARSE_LAUNCH = AttendConfig(block_n=32, warps=4, stages=5, programs=264, min_splits=1)
SELECT_WORKSPACE_BYTES = 256 << 20  # larger batches select in several rounds


class HasBytes(Protocol):
    """Buffers that know what they take."""

    @property
    def nbytes(self) -> int:
        """Device memory, in bytes."""


@dataclass(frozen=True)
class AttentionShape:
    """What FlashInfer plans with: head counts on this rank, head size, dtypes."""

    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    q_dtype: torch.dtype
    kv_dtype: torch.dtype

    @classmethod
    def of_updater(cls, updater: Any) -> AttentionShape:
        """What SGLang's ``FlashInferIndicesUpdaterDecode`` plans with."""
        heads = updater.num_qo_heads, updater.num_kv_heads
        return cls(*heads, updater.head_dim, updater.q_data_type, updater.data_type)

    @property
    def heads(self) -> HeadShape:
        """What launches of attention size their tiles by."""
        return HeadShape(self.head_dim, self.num_qo_heads // self.num_kv_heads, self.q_dtype, self.kv_dtype)

    @property
    def split_kv_batch(self) -> int:
        """Requests up to which the split-KV kernel attends in SPARSE layers; FlashInfer takes larger batches."""
        return max(1, SPLIT_KV_HEADS // self.num_kv_heads)


@dataclass(frozen=True)
class StepBuffers:
    """What a captured step reads and writes, made once; layers use them one after another.

    Attributes:
        sparse_indptr: [max_batch + 1] int32, ends of the sets' slots.
        sparse_indices: [max_batch * K] int32, the sets' slots.
        out: [max_batch, H, D], attention's output of one layer.
        select: scratch of the selection.
        attend: scratch of split-KV attention.
        exchange: where ranks share the heads, what they tell each other in a SELECT layer.
    """

    sparse_indptr: Tensor
    sparse_indices: Tensor
    out: Tensor
    select: SelectWorkspace
    attend: AttendWorkspace
    exchange: Exchange | None = None

    @classmethod
    def allocate(
        cls,
        max_batch: int,
        max_length: int,
        split: BudgetSplit,
        shape: AttentionShape,
        device: torch.device,
        shard: HeadShard | None = None,
    ) -> StepBuffers:
        """Make the buffers for up to ``max_batch`` requests of up to ``max_length`` tokens."""
        heads, kv_heads = shape.num_qo_heads, shape.num_kv_heads
        select = SelectWorkspace.allocate(max_batch, max_length, heads, split, device, SELECT_WORKSPACE_BYTES)
        exchange = Exchange.allocate(shard, len(select.keys), split.selected, device) if shard else None
        sparse_requests = min(max_batch, shape.split_kv_batch)
        workspaces = [
            AttendWorkspace.allocate(requests, heads, kv_heads, shape.head_dim, device, config)
            for requests, config in ((len(select.keys), LaunchConfig().attend), (sparse_requests, SPARSE_LAUNCH))
        ]
        return cls(
            torch.zeros(max_batch + 1, dtype=torch.int32, device=device),
            torch.zeros(max_batch * split.budget, dtype=torch.int32, device=device),
            torch.empty(max_batch, heads, shape.head_dim, dtype=shape.q_dtype, device=device),
            select,
            max(workspaces, key=lambda workspace: workspace.nbytes),
            exchange,
        )

    @property
    def nbytes(self) -> int:
        """Device memory, in bytes."""
        own = self.sparse_indptr.nbytes + self.sparse_indices.nbytes + self.out.nbytes
        exchange = self.exchange.nbytes if self.exchange else 0
        return own + self.select.nbytes + self.attend.nbytes + exchange


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


Made = TypeVar("Made", bound=HasBytes)


def made_on(device: torch.device, make: Callable[[torch.device], Made], max_batch: int, max_length: int) -> Made:
    """The buffers that ``make`` allocates for ``max_batch`` requests of up to ``max_length`` tokens.

    Raises:
        UnsupportedError: SGLang's own allocations, which come first, have left too little.
    """
    try:
        return make(device)
    except torch.OutOfMemoryError as error:
        wanted = make(torch.device("meta")).nbytes
        free, total = torch.cuda.mem_get_info(device)
        raise UnsupportedError(
            f"no room for lim's buffers: {wanted >> 20} MiB for {max_batch} requests of up to {max_length} tokens, and "
            f"{free >> 20} MiB are free; lower --mem-fraction-static by {math.ceil(100 * wanted / total) / 100}, or "
            "--max-running-requests or --context-length"
        ) from error


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
        self._captured: dict[int, Any] = {}
        self._without_graph: list[Any] = []
        self._planned_batch = 0

    def captured(self, batch: int) -> Any:
        """The wrapper that graphs of ``batch`` requests hold, planned on first use (never during a capture)."""
        if batch not in self._captured:
            wrapper = self._make(batch, use_cuda_graph=True)
            self._plan(wrapper, batch)
            self._captured[batch] = wrapper
        return self._captured[batch]

    def without_graph(self, batch: int) -> Any:
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

    @property
    def nbytes(self) -> int:
        """Device memory of the plans, in bytes; the float workspace is SGLang's."""
        plans = [*self._captured, *[len(self._ones)] * len(self._without_graph)]
        return sum(map(int_workspace_bytes, plans))

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
