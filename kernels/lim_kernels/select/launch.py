"""Checks and launches of a SELECT layer. A launch allocates nothing: ``workspace`` makes the buffers, once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

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
from lim_kernels.chain import chained
from lim_kernels.select.budget import BudgetSplit, check_device_limits
from lim_kernels.select.complete import full_emit_kernel, full_rank_kernel
from lim_kernels.select.emit import emit_kernel, sparse_indptr_kernel
from lim_kernels.select.exchange import full_offer_kernel, join_kernel, offer_kernel
from lim_kernels.select.shard import Exchange
from lim_kernels.select.shortlist import shortlist_kernel
from lim_kernels.select.workspace import SPAN, SelectWorkspace, shortlist_length


@dataclass(frozen=True)
class LaunchConfig:
    """Constants of the launches; the defaults are compromises of a sweep on an H200.

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


@dataclass(frozen=True)
class SelectLayer:
    """One SELECT layer of a decode step: dense attention, and the sets that its queries choose (arXiv 2508.07101).

    Attributes:
        q: [B, H, D] bfloat16, float16 or float32; the last dimension contiguous.
        cache: the layer's keys and values, in the dtype of ``q`` or float8_e4m3fn.
        index: the requests' slots, and where those of the sets go, in ascending position order.
        out: [B, H, D], the attention's output, written.
        split: the parts of the budget.
        workspace: from ``SelectWorkspace.allocate``; no request may be longer than its width.
        attend_workspace: for as many requests as ``workspace``.
        config: launch constants; sets do not depend on them.
        exchange: where other devices hold further heads: one set for all, by the shard's collective once a round.
    """

    q: Tensor
    cache: KVCache
    index: SlotIndex
    out: Tensor
    split: BudgetSplit
    workspace: SelectWorkspace
    attend_workspace: AttendWorkspace
    config: LaunchConfig = field(default_factory=LaunchConfig)
    exchange: Exchange | None = None

    def run(self) -> None:
        """Launch everything.

        Raises:
            ValueError: a shape, dtype, stride or device is not as above.
        """
        _check(self)
        for part in self.rounds():
            part.run()

    @property
    def key_heads(self) -> tuple[int, int]:
        """How many heads share the keys, and the number of this device's first among them."""
        shard = self.exchange.shard if self.exchange else None
        return (shard.num_heads, shard.first_head) if shard else (self.q.shape[1], 0)

    @property
    def key_limit(self) -> int:
        """Above every key of a selected token."""
        return self.split.selected * self.key_heads[0]

    @property
    def key_passes(self) -> int:
        """Digits of eight bits in a key."""
        return max(1, -(-max(self.key_limit - 1, 1).bit_length() // 8))

    def rounds(self) -> list[Round]:
        """The batch in equal parts that fit into the workspace; nothing is checked."""
        batch = self.q.shape[0]
        rows = triton.cdiv(batch, triton.cdiv(batch, self.workspace.scores.shape[0]))
        return [Round(self, first, min(rows, batch - first)) for first in range(0, batch, rows)]


@dataclass(frozen=True)
class Round:
    """The launches for ``rows`` requests from number ``first`` on."""

    layer: SelectLayer
    first: int
    rows: int

    def run(self) -> None:
        """All launches, in order; nothing is checked."""
        exchange = self.layer.exchange
        self.attend()
        if not self.layer.split.selected:
            self.emit()
            return
        self.shortlist()
        if exchange is None:
            self.emit()
            self.rank_all()
            self.emit_rest()
        else:
            self.offer()
            self.rank_all()
            self.offer_rest()
            exchange.gather(self.rows)
            self.join()
            self.emit()

    def attend(self) -> None:
        """Dense attention, and every query head's scores of all candidates on the way."""
        layer, split, workspace = self.layer, self.layer.split, self.layer.workspace
        requests = Requests(layer.index.kv_indptr, layer.index.kv_indices, self.first, self.rows)
        sink = ScoreSink(workspace.scores, workspace.maxima, workspace.keys, split.budget, split.sinks, split.recent)
        attend(
            layer.q,
            layer.cache,
            requests,
            layer.out,
            layer.attend_workspace,
            layer.config.attend,
            sink if split.selected else None,
        )

    def shortlist(self) -> None:
        """Every head's best candidates in order, and the keys that follow from them."""
        workspace, config, split = self.layer.workspace, self.layer.config, self.layer.split
        num_heads, short = workspace.shortlists.shape[1:]
        shortlist_kernel[(num_heads, self.rows)](
            maxima=workspace.maxima,
            maxima_stride_b=workspace.maxima.stride(0),
            maxima_stride_h=workspace.maxima.stride(1),
            shortlists=workspace.shortlists,
            counts=workspace.counts,
            spans=workspace.spans,
            best=workspace.best,
            budget=split.budget,
            selected=split.selected,
            num_heads=num_heads,
            MOST=short,
            SPAN=SPAN,
            BLOCK=config.shortlist_block,
            RANK_BLOCK=config.rank_block,
            num_warps=config.shortlist_warps,
            **self._scores(),
            **self._key_heads(),
            **self._keys(),
        )

    def emit(self) -> None:
        """The sets' slots, or a flag where the shortlists end too early."""
        workspace, config, split = self.layer.workspace, self.layer.config, self.layer.split
        num_heads, short = workspace.shortlists.shape[1:]
        tiles = triton.cdiv(workspace.keys.shape[1], config.emit_block)
        splits = min(tiles, max(1, config.emit_programs // self.rows))
        exchange = self.layer.exchange if split.selected else None
        emit_kernel[(splits, self.rows)](
            shortlists=workspace.shortlists,
            counts=workspace.counts,
            unfinished=workspace.unfinished,
            gathered=exchange.gathered if exchange else workspace.counts,
            joined=exchange.joined if exchange else workspace.counts,
            num_splits=splits,
            rows=self.rows,
            devices=exchange.shard.devices if exchange else 1,
            budget=split.budget,
            selected=split.selected,
            num_heads=num_heads,
            key_limit=self.layer.key_limit,
            SELECTS=split.selected > 0,
            EXCHANGED=exchange is not None,
            KEY_PASSES=self.layer.key_passes if exchange else 0,
            MOST=short,
            HEADS=triton.next_power_of_2(max(num_heads, 2)),
            BLOCK=config.emit_block,
            num_warps=config.emit_warps,
            **self._slots(),
            **self._keys(),
        )

    def offer(self) -> None:
        """This device's candidates with the smallest keys, or a flag where its shortlists end too early."""
        workspace, config, exchange = self.layer.workspace, self.layer.config, self._exchange
        num_heads, short = workspace.shortlists.shape[1:]
        offer_kernel[(self.rows,)](
            shortlists=workspace.shortlists,
            counts=workspace.counts,
            unfinished=workspace.unfinished,
            offered=exchange.offered,
            budget=self.layer.split.budget,
            selected=self.layer.split.selected,
            num_heads=num_heads,
            MOST=short,
            HEADS=triton.next_power_of_2(max(num_heads, 2)),
            BLOCK=config.emit_block,
            num_warps=config.emit_warps,
            **self._key_heads(),
            **self._keys(),
        )

    def rank_all(self) -> None:
        """The complete ranking of flagged requests; its programs end at once for all others."""
        workspace, config, selected = self.layer.workspace, self.layer.config, self.layer.split.selected
        full_rank_kernel[(workspace.scores.shape[1], self.rows)](
            ranked=workspace.ranked,
            unfinished=workspace.unfinished,
            ranked_stride_b=workspace.ranked.stride(0),
            ranked_stride_h=workspace.ranked.stride(1),
            selected=selected,
            SELECTED_PAD=triton.next_power_of_2(max(selected, 2)),
            BLOCK=config.block,
            num_warps=config.warps,
            **self._scores(),
            **self._key_heads(),
            **self._keys(),
        )

    def emit_rest(self) -> None:
        """The sets' slots of flagged requests."""
        full_emit_kernel[(self.rows,)](**self._of_complete_keys(), **self._slots())

    def offer_rest(self) -> None:
        """The candidates of flagged requests."""
        full_offer_kernel[(self.rows,)](**self._of_complete_keys(), offered=self._exchange.offered)

    def join(self) -> None:
        """Of what all devices offered, the smallest key of every position."""
        exchange, config, split = self._exchange, self.layer.config, self.layer.split
        join_kernel[(self.rows,)](
            gathered=exchange.gathered,
            joined=exchange.joined,
            rows=self.rows,
            devices=exchange.shard.devices,
            budget=split.budget,
            selected=split.selected,
            BLOCK=config.emit_block,
            num_warps=config.emit_warps,
            **self._keys(follows=False),  # a collective is ahead
        )

    @property
    def _exchange(self) -> Exchange:
        assert self.layer.exchange is not None
        return self.layer.exchange

    def _of_complete_keys(self) -> dict[str, Any]:
        return {
            "unfinished": self.layer.workspace.unfinished,
            "selected": self.layer.split.selected,
            "key_limit": self.layer.key_limit,
            "KEY_PASSES": self.layer.key_passes,
            "BLOCK": self.layer.config.block,
            "num_warps": self.layer.config.warps,
            **self._keys(),
        }

    def _key_heads(self) -> dict[str, int]:
        return dict(zip(("key_heads", "first_head"), self.layer.key_heads, strict=True))

    def _scores(self) -> dict[str, Any]:
        scores = self.layer.workspace.scores
        return {"scores": scores, "scores_stride_b": scores.stride(0), "scores_stride_h": scores.stride(1)}

    def _keys(self, follows: bool = True) -> dict[str, Any]:
        """What every launch takes: the keys, the requests, where the candidates begin and end."""
        return {
            "keys": self.layer.workspace.keys,
            "keys_stride_b": self.layer.workspace.keys.stride(0),
            "kv_indptr": self.layer.index.kv_indptr,
            "first_request": self.first,
            "sinks": self.layer.split.sinks,
            "recent": self.layer.split.recent,
            **chained(self.layer.q.device, follows),
        }

    def _slots(self) -> dict[str, Any]:
        index = self.layer.index
        return {
            "kv_indices": index.kv_indices,
            "sparse_indptr": index.sparse_indptr,
            "sparse_indices": index.sparse_indices,
        }


def _check(layer: SelectLayer) -> None:
    q, index, split, workspace = layer.q, layer.index, layer.split, layer.workspace
    check_indices(q.device, index[2:], workspace.scores)
    short = shortlist_length(split.selected)
    if workspace.ranked.shape[1:] != (q.shape[1], max(1, split.selected)) or workspace.shortlists.shape[2] != short:
        raise ValueError(
            f"workspace for another head count or budget: expected {q.shape[1]} heads, m = {split.selected}"
        )
    if layer.exchange is not None:
        _check_exchange(layer, layer.exchange)
    if len(index.sparse_indices) < q.shape[0] * split.budget:
        raise ValueError(
            f"sparse_indices of {len(index.sparse_indices)}: expected at least B * K = {q.shape[0] * split.budget}"
        )


def _check_exchange(layer: SelectLayer, exchange: Exchange) -> None:
    rows, pairs = len(layer.workspace.keys), max(1, layer.split.selected)
    check_device_limits(layer.split, exchange.shard.num_heads)
    if len(exchange.offered) < rows or exchange.offered.shape[1] != pairs:
        raise ValueError(
            f"exchange for {list(exchange.offered.shape[:2])} requests and tokens: expected {rows} or more, and {pairs}"
        )
    first, heads = exchange.shard.first_head, layer.q.shape[1]
    if not 0 <= first <= exchange.shard.num_heads - heads:
        raise ValueError(f"heads from {first} on: expected {heads} of {exchange.shard.num_heads}")
