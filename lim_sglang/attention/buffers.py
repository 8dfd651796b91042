"""The buffers of a captured step, made once, and the shape of attention that sizes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from lim_kernels.attend.config import AttendConfig, HeadShape
from lim_kernels.attend.launch import AttendWorkspace
from lim_kernels.select.budget import BudgetSplit
from lim_kernels.select.launch import LaunchConfig
from lim_kernels.select.shard import Exchange, HeadShard
from lim_kernels.select.workspace import SelectWorkspace
from lim_sglang.host.refusals import UnsupportedError

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
