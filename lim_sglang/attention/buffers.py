"""The buffers of a captured step, made once, and the shape of attention that sizes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lim_kernels.attend.config import AttendConfig, HeadShape
from lim_kernels.attend.launch import AttendWorkspace
from lim_kernels.select.budget import BudgetParts
from lim_kernels.select.launch import LaunchConfig
from lim_kernels.select.shard import Exchange, HeadShard
from lim_kernels.select.workspace import SelectWorkspace
from lim_sglang.host.refusals import UnsupportedError

SPLIT_KV_HEADS = 128  # requests times KV heads; measured on an H100 by bench.speed.decode_attention
# For the split-KV kernel in SPARSE layers, from a sweep by bench.speed.decode_attention; its GPU was not noted.
SPARSE_LAUNCH = AttendConfig(block_n=32, warps=4, stages=5, programs=264, min_splits=1)
SELECT_WORKSPACE_BYTES = 256 << 20  # larger batches select in several chunks


@dataclass(frozen=True)
class AttentionShape:
    """The shape of attention that FlashInfer plans with: head counts on this rank, head size, dtypes."""

    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    q_dtype: torch.dtype
    kv_dtype: torch.dtype

    @classmethod
    def of_updater(cls, updater: Any) -> AttentionShape:
        """The shape that SGLang's ``FlashInferIndicesUpdaterDecode`` plans with."""
        heads = updater.num_qo_heads, updater.num_kv_heads
        return cls(*heads, updater.head_dim, updater.q_data_type, updater.data_type)

    @property
    def heads(self) -> HeadShape:
        """The sizes by which launches of attention choose their tiles."""
        return HeadShape(self.head_dim, self.num_qo_heads // self.num_kv_heads, self.q_dtype, self.kv_dtype)

    @property
    def split_kv_batch(self) -> int:
        """Requests up to which the split-KV kernel attends in SPARSE layers; FlashInfer takes larger batches."""
        return max(1, SPLIT_KV_HEADS // self.num_kv_heads)


@dataclass(frozen=True)
class StepBuffers:
    """The buffers that a captured step reads and writes, made once; layers use them one after another.

    Attributes:
        sparse_indptr: [max_batch + 1] int32, ends of the sets' slots.
        sparse_indices: [max_batch * K] int32, the sets' slots.
        out: [max_batch, H, D], attention's output of one layer.
        select: scratch of the selection.
        attend: scratch of split-KV attention.
        exchange: buffers of a SELECT layer's collective, where ranks share the heads.
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
        parts: BudgetParts,
        shape: AttentionShape,
        device: torch.device,
        shard: HeadShard | None = None,
    ) -> StepBuffers:
        """Make the buffers for up to ``max_batch`` requests of up to ``max_length`` tokens."""
        heads, kv_heads = shape.num_qo_heads, shape.num_kv_heads
        select = SelectWorkspace.allocate(max_batch, max_length, heads, parts, device, SELECT_WORKSPACE_BYTES)
        exchange = Exchange.allocate(shard, len(select.ranks), parts.selected, device) if shard else None
        sparse_requests = min(max_batch, shape.split_kv_batch)
        workspaces = [
            AttendWorkspace.allocate(requests, heads, kv_heads, shape.head_dim, device, config)
            for requests, config in ((len(select.ranks), LaunchConfig().attend), (sparse_requests, SPARSE_LAUNCH))
        ]
        return cls(
            torch.zeros(max_batch + 1, dtype=torch.int32, device=device),
            torch.zeros(max_batch * parts.budget, dtype=torch.int32, device=device),
            torch.empty(max_batch, heads, shape.head_dim, dtype=shape.q_dtype, device=device),
            select,
            max(workspaces, key=lambda workspace: workspace.nbytes),
            exchange,
        )

    @property
    def nbytes(self) -> int:
        """Device memory, in bytes."""
        shared = self.sparse_indptr.nbytes + self.sparse_indices.nbytes + self.out.nbytes
        exchange = self.exchange.nbytes if self.exchange else 0
        return shared + self.select.nbytes + self.attend.nbytes + exchange


def allocate_on(device: torch.device, allocate: Callable[[torch.device], Any], max_batch: int, max_length: int) -> Any:
    """The buffers that ``allocate`` makes on a device for ``max_batch`` requests of up to ``max_length`` tokens.

    Raises:
        UnsupportedError: SGLang's own allocations, which come first, have left too little memory.
    """
    try:
        return allocate(device)
    except torch.OutOfMemoryError as error:
        wanted = allocate(torch.device("meta")).nbytes
        free, total = torch.cuda.mem_get_info(device)
        raise UnsupportedError(
            f"no room for lim's buffers: {wanted >> 20} MiB for {max_batch} requests of up to {max_length} tokens, and "
            f"{free >> 20} MiB are free; lower --mem-fraction-static by {math.ceil(100 * wanted / total) / 100}, or "
            "--max-running-requests or --context-length"
        ) from error
