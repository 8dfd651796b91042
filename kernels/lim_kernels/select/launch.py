"""Checks and launches of a SELECT layer. A launch allocates nothing: ``workspace`` makes the buffers, once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import triton
from torch import Tensor

from lim_kernels.attend.launch import (
    AttendConfig,
    AttendWorkspace,
    KVCache,
    Requests,
    ScoreSink,
    attend,
    check_indices,
)
from lim_kernels.chain import launch_options
from lim_kernels.select.budget import BudgetParts, check_device_limits
from lim_kernels.select.complete import full_emit_kernel, full_rank_kernel
from lim_kernels.select.emit import emit_kernel, sparse_indptr_kernel
from lim_kernels.select.exchange import full_offer_kernel, join_kernel, offer_kernel
from lim_kernels.select.shard import Exchange
from lim_kernels.select.shortlist import shortlist_kernel
from lim_kernels.select.workspace import SPAN, SelectWorkspace, shortlist_length


@dataclass(frozen=True)
class LaunchConfig:
    """Constants of the launches, compromises of a sweep by ``bench.speed.decode_attention`` on an H200.

    The sweep: batch x context 1 x 32K, 8 x 32K, 16 x 16K, 2 x 128K, 32 query and 8 KV heads, head size 128, bf16.

    Attributes:
        attend: of the layer's attention.
        emit_programs: programs that ``emit_kernel`` aims for over all requests of a launch.
        block, warps: tokens per tile and warps of the complete ranking.
    """

    attend: AttendConfig = field(default_factory=AttendConfig)
    shortlist_block: int = 1024
    rank_block: int = 64
    shortlist_warps: int = 4
    emit_block: int = 2048
    emit_warps: int = 16
    emit_programs: int = 132
    block: int = 4096
    warps: int = 16


def write_sparse_indptr(kv_indptr: Tensor, sparse_indptr: Tensor, batch: int, budget: int) -> None:
    """Fill ``sparse_indptr[: batch + 1]`` with the ends of ``min(n, K)`` tokens per request.

    Args:
        kv_indptr: [>= batch + 1] int32 on the device, the ends of the requests' tokens.
        sparse_indptr: [>= batch + 1] int32 on the device, written.
        batch: number of requests.
        budget: ``K``, tokens.
    """
    sparse_indptr_kernel[(1,)](kv_indptr, sparse_indptr, batch, budget, BLOCK=triton.next_power_of_2(max(batch, 2)))


class SlotIndex(NamedTuple):
    """Where a batch's slots are read and written.

    Attributes:
        kv_indptr: [>= B + 1] int32, ends of the requests' slots in ``kv_indices``.
        kv_indices: int32 slots of every request's tokens in position order, the current token included.
        sparse_indptr: [>= B + 1] int32, as ``write_sparse_indptr`` makes it.
        sparse_indices: [>= B * K] int32, written from ``sparse_indptr[b]`` on for request ``b``.
    """

    kv_indptr: Tensor
    kv_indices: Tensor
    sparse_indptr: Tensor
    sparse_indices: Tensor


class Chunk(NamedTuple):
    """Consecutive requests of a batch that share the workspace: ``size`` of them from number ``first`` on."""

    first: int
    size: int


@dataclass(frozen=True)
class SelectLayer:
    """One SELECT layer of a decode step: dense attention, and the sets that its queries choose (arXiv 2508.07101).

    Attributes:
        q: [B, H, D] bfloat16, float16 or float32; the last dimension contiguous.
        cache: the layer's keys and values, in the dtype of ``q`` or float8_e4m3fn.
        index: the requests' slots, and where those of the sets go, in ascending position order.
        out: [B, H, D], the attention's output, written.
        parts: the parts of the budget.
        workspace: from ``SelectWorkspace.allocate``; no request may be longer than its width.
        attend_workspace: for as many requests as ``workspace``.
        config: launch constants; sets do not depend on them.
        exchange: where other devices hold further heads: one set for all, by the shard's collective once a chunk.
    """

    q: Tensor
    cache: KVCache
    index: SlotIndex
    out: Tensor
    parts: BudgetParts
    workspace: SelectWorkspace
    attend_workspace: AttendWorkspace
    config: LaunchConfig = field(default_factory=LaunchConfig)
    exchange: Exchange | None = None

    def run(self) -> None:
        """Launch everything for the whole batch, chunk by chunk.

        Raises:
            ValueError: a shape, dtype, stride or device is not as above.
        """
        _check(self)
        for chunk in self.chunks():
            self.run_chunk(chunk)

    def chunks(self) -> list[Chunk]:
        """The batch in equal chunks that fit into the workspace."""
        batch = self.q.shape[0]
        size = triton.cdiv(batch, triton.cdiv(batch, self.workspace.scores.shape[0]))
        return [Chunk(first, min(size, batch - first)) for first in range(0, batch, size)]

    def run_chunk(self, chunk: Chunk) -> None:
        """Launch everything for one chunk, in order; nothing is checked."""
        self.attend(chunk)
        if not self.parts.selected:
            self.emit(chunk)
            return
        self.shortlist(chunk)
        if self.exchange is None:
            self.emit(chunk)
            self.finish(chunk)
        else:
            self.offer(chunk, self.exchange)
            self.rank_unfinished(chunk)
            self.offer_unfinished(chunk, self.exchange)
            self.exchange.gather(chunk.size)
            self.join(chunk, self.exchange)
            self.emit(chunk)

    def finish(self, chunk: Chunk) -> None:
        """Rank and emit the requests whose shortlists ended too early."""
        self.rank_unfinished(chunk)
        self.emit_unfinished(chunk)

    @property
    def rank_heads(self) -> tuple[int, int]:
        """The number of heads that the unified ranks are counted over, and the number of this device's first one."""
        if self.exchange is None:
            return self.q.shape[1], 0
        return self.exchange.shard.num_heads, self.exchange.shard.first_head

    @property
    def rank_limit(self) -> int:
        """A number above every unified rank of a selected token."""
        return self.parts.selected * self.rank_heads[0]

    @property
    def rank_passes(self) -> int:
        """How many digits of eight bits a unified rank has."""
        return max(1, -(-max(self.rank_limit - 1, 1).bit_length() // 8))

    def attend(self, chunk: Chunk) -> None:
        """Launch dense attention, which leaves every query head's scores of all candidates on the way."""
        workspace, parts = self.workspace, self.parts
        requests = Requests(self.index.kv_indptr, self.index.kv_indices, *chunk)
        sink = ScoreSink(workspace.scores, workspace.maxima, workspace.ranks, parts.budget, parts.sinks, parts.recent)
        given = sink if parts.selected else None
        attend(self.q, self.cache, requests, self.out, self.attend_workspace, self.config.attend, given)

    def shortlist(self, chunk: Chunk) -> None:
        """Launch the ranking of every head's best candidates, which lowers their unified ranks."""
        workspace, parts = self.workspace, self.parts
        num_heads, short = workspace.shortlists.shape[1:]
        rank_heads, first_head = self.rank_heads
        shortlist_kernel[(num_heads, chunk.size)](
            scores=workspace.scores,
            maxima=workspace.maxima,
            ranks=workspace.ranks,
            shortlists=workspace.shortlists,
            counts=workspace.counts,
            spans=workspace.spans,
            best=workspace.best,
            kv_indptr=self.index.kv_indptr,
            first_request=chunk.first,
            scores_stride_b=workspace.scores.stride(0),
            scores_stride_h=workspace.scores.stride(1),
            maxima_stride_b=workspace.maxima.stride(0),
            maxima_stride_h=workspace.maxima.stride(1),
            ranks_stride_b=workspace.ranks.stride(0),
            budget=parts.budget,
            selected=parts.selected,
            sinks=parts.sinks,
            recent=parts.recent,
            num_heads=num_heads,
            rank_heads=rank_heads,
            first_head=first_head,
            MOST=short,
            SPAN=SPAN,
            BLOCK=self.config.shortlist_block,
            RANK_BLOCK=self.config.rank_block,
            num_warps=self.config.shortlist_warps,
            **launch_options(self.q.device),
        )

    def emit(self, chunk: Chunk) -> None:
        """Launch what writes the sets' slots, or a flag where the shortlists end too early."""
        workspace, parts, index = self.workspace, self.parts, self.index
        num_heads, short = workspace.shortlists.shape[1:]
        tiles = triton.cdiv(workspace.ranks.shape[1], self.config.emit_block)
        emit_splits = min(tiles, max(1, self.config.emit_programs // chunk.size))
        exchange = self.exchange if parts.selected else None
        emit_kernel[(emit_splits, chunk.size)](
            ranks=workspace.ranks,
            shortlists=workspace.shortlists,
            counts=workspace.counts,
            unfinished=workspace.unfinished,
            gathered=exchange.gathered if exchange else workspace.counts,
            joined=exchange.joined if exchange else workspace.counts,
            kv_indptr=index.kv_indptr,
            kv_indices=index.kv_indices,
            sparse_indptr=index.sparse_indptr,
            sparse_indices=index.sparse_indices,
            first_request=chunk.first,
            emit_splits=emit_splits,
            rows=chunk.size,
            devices=exchange.shard.devices if exchange else 1,
            ranks_stride_b=workspace.ranks.stride(0),
            budget=parts.budget,
            selected=parts.selected,
            sinks=parts.sinks,
            recent=parts.recent,
            num_heads=num_heads,
            rank_limit=self.rank_limit,
            SELECTS=parts.selected > 0,
            EXCHANGED=exchange is not None,
            RANK_PASSES=self.rank_passes if exchange else 0,
            MOST=short,
            HEADS=triton.next_power_of_2(max(num_heads, 2)),
            BLOCK=self.config.emit_block,
            num_warps=self.config.emit_warps,
            **launch_options(self.q.device),
        )

    def offer(self, chunk: Chunk, exchange: Exchange) -> None:
        """Launch what offers this device's lowest unified ranks, or a flag where its shortlists end too early."""
        workspace, parts = self.workspace, self.parts
        num_heads, short = workspace.shortlists.shape[1:]
        rank_heads, first_head = self.rank_heads
        offer_kernel[(chunk.size,)](
            ranks=workspace.ranks,
            shortlists=workspace.shortlists,
            counts=workspace.counts,
            unfinished=workspace.unfinished,
            offered=exchange.offered,
            kv_indptr=self.index.kv_indptr,
            first_request=chunk.first,
            ranks_stride_b=workspace.ranks.stride(0),
            budget=parts.budget,
            selected=parts.selected,
            sinks=parts.sinks,
            recent=parts.recent,
            num_heads=num_heads,
            rank_heads=rank_heads,
            first_head=first_head,
            MOST=short,
            HEADS=triton.next_power_of_2(max(num_heads, 2)),
            BLOCK=self.config.emit_block,
            num_warps=self.config.emit_warps,
            **launch_options(self.q.device),
        )

    def rank_unfinished(self, chunk: Chunk) -> None:
        """Launch the complete ranking of flagged requests; its programs end at once for all others."""
        workspace, parts = self.workspace, self.parts
        rank_heads, first_head = self.rank_heads
        full_rank_kernel[(workspace.scores.shape[1], chunk.size)](
            scores=workspace.scores,
            ranks=workspace.ranks,
            ranked=workspace.ranked,
            unfinished=workspace.unfinished,
            kv_indptr=self.index.kv_indptr,
            first_request=chunk.first,
            scores_stride_b=workspace.scores.stride(0),
            scores_stride_h=workspace.scores.stride(1),
            ranks_stride_b=workspace.ranks.stride(0),
            ranked_stride_b=workspace.ranked.stride(0),
            ranked_stride_h=workspace.ranked.stride(1),
            selected=parts.selected,
            sinks=parts.sinks,
            recent=parts.recent,
            rank_heads=rank_heads,
            first_head=first_head,
            SELECTED_PAD=triton.next_power_of_2(max(parts.selected, 2)),
            BLOCK=self.config.block,
            num_warps=self.config.warps,
            **launch_options(self.q.device),
        )

    def emit_unfinished(self, chunk: Chunk) -> None:
        """Launch what writes the slots of flagged requests' sets."""
        full_emit_kernel[(chunk.size,)](
            ranks=self.workspace.ranks,
            unfinished=self.workspace.unfinished,
            kv_indptr=self.index.kv_indptr,
            kv_indices=self.index.kv_indices,
            sparse_indptr=self.index.sparse_indptr,
            sparse_indices=self.index.sparse_indices,
            first_request=chunk.first,
            ranks_stride_b=self.workspace.ranks.stride(0),
            selected=self.parts.selected,
            sinks=self.parts.sinks,
            recent=self.parts.recent,
            rank_limit=self.rank_limit,
            RANK_PASSES=self.rank_passes,
            BLOCK=self.config.block,
            num_warps=self.config.warps,
            **launch_options(self.q.device),
        )

    def offer_unfinished(self, chunk: Chunk, exchange: Exchange) -> None:
        """Launch what offers the lowest unified ranks of flagged requests."""
        full_offer_kernel[(chunk.size,)](
            ranks=self.workspace.ranks,
            unfinished=self.workspace.unfinished,
            offered=exchange.offered,
            kv_indptr=self.index.kv_indptr,
            first_request=chunk.first,
            ranks_stride_b=self.workspace.ranks.stride(0),
            selected=self.parts.selected,
            sinks=self.parts.sinks,
            recent=self.parts.recent,
            rank_limit=self.rank_limit,
            RANK_PASSES=self.rank_passes,
            BLOCK=self.config.block,
            num_warps=self.config.warps,
            **launch_options(self.q.device),
        )

    def join(self, chunk: Chunk, exchange: Exchange) -> None:
        """Launch what keeps, of all that the devices offered, the smallest unified rank of every position."""
        join_kernel[(chunk.size,)](
            ranks=self.workspace.ranks,
            gathered=exchange.gathered,
            joined=exchange.joined,
            kv_indptr=self.index.kv_indptr,
            first_request=chunk.first,
            rows=chunk.size,
            devices=exchange.shard.devices,
            ranks_stride_b=self.workspace.ranks.stride(0),
            budget=self.parts.budget,
            selected=self.parts.selected,
            sinks=self.parts.sinks,
            recent=self.parts.recent,
            BLOCK=self.config.emit_block,
            num_warps=self.config.emit_warps,
            **launch_options(self.q.device, follows=False),  # a collective is ahead
        )


def _check(layer: SelectLayer) -> None:
    q, index, parts, workspace = layer.q, layer.index, layer.parts, layer.workspace
    check_indices(q.device, index[2:], workspace.scores)
    short = shortlist_length(parts.selected)
    if workspace.ranked.shape[1:] != (q.shape[1], max(1, parts.selected)) or workspace.shortlists.shape[2] != short:
        raise ValueError(
            f"workspace for another head count or budget: expected {q.shape[1]} heads, m = {parts.selected}"
        )
    if layer.exchange is not None:
        _check_exchange(layer, layer.exchange)
    if len(index.sparse_indices) < q.shape[0] * parts.budget:
        raise ValueError(
            f"sparse_indices of {len(index.sparse_indices)}: expected at least B * K = {q.shape[0] * parts.budget}"
        )


def _check_exchange(layer: SelectLayer, exchange: Exchange) -> None:
    rows, pairs = len(layer.workspace.ranks), max(1, layer.parts.selected)
    check_device_limits(layer.parts, exchange.shard.num_heads)
    if len(exchange.offered) < rows or exchange.offered.shape[1] != pairs:
        raise ValueError(
            f"exchange for {list(exchange.offered.shape[:2])} requests and tokens: expected {rows} or more, and {pairs}"
        )
    first, heads = exchange.shard.first_head, layer.q.shape[1]
    if not 0 <= first <= exchange.shard.num_heads - heads:
        raise ValueError(f"heads from {first} on: expected {heads} of {exchange.shard.num_heads}")
