"""Checks, buffers and launches of the selection kernels. Buffers are made once; a launch allocates nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from lim_kernels.select.budget import BudgetSplit, check_device_limits
from lim_kernels.select.full_ranking import full_emit_kernel, full_rank_kernel
from lim_kernels.select.kernel import emit_kernel, score_kernel, shortlist_kernel, sparse_indptr_kernel

SCORE_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn)


@dataclass(frozen=True)
class LaunchConfig:
    """Constants of the launches; the defaults are compromises of a sweep on an H200.

    The sweep: batch x context 1 x 32K, 8 x 32K, 16 x 16K, 2 x 128K, 32 query and 8 KV heads, head size 128, bf16.

    Attributes:
        block_n: tokens per tile of ``score_kernel``.
        score_programs: programs that ``score_kernel`` aims for over all requests and KV heads of a launch.
        emit_programs: programs that ``emit_kernel`` aims for over all requests of a launch.
        block, warps: tokens per tile and warps of the complete ranking.
    """

    block_n: int = 128
    score_programs: int = 2048
    score_warps: int = 4
    shortlist_block: int = 4096
    shortlist_warps: int = 8
    emit_block: int = 2048
    emit_warps: int = 16
    emit_programs: int = 132
    block: int = 4096
    warps: int = 16


@dataclass(frozen=True)
class SelectWorkspace:
    """Scratch of one selection, for up to ``rows`` requests at a time; larger batches go in several rounds.

    Attributes:
        scores: [rows, H, N] int32, ordered as the scores are.
        keys: [rows, N] int32, the unified keys.
        shortlists: [rows, H, S] int32, positions by rank; ``S`` is a power of two of about ``m / 2`` to ``m``.
        counts: [rows, H] int32, complete ranks of the shortlists.
        unfinished: [rows] int32, 1 for requests that need the complete ranking.
        ranked: [rows, H, max(m, S)] int64.
    """

    scores: Tensor
    keys: Tensor
    shortlists: Tensor
    counts: Tensor
    unfinished: Tensor
    ranked: Tensor

    @classmethod
    def allocate(
        cls,
        max_batch: int,
        max_length: int,
        num_qo_heads: int,
        split: BudgetSplit,
        device: torch.device | str,
        max_bytes: int = 448 << 20,
    ) -> SelectWorkspace:
        """Make the buffers.

        Args:
            max_batch: largest batch, ``max_length``: longest request, in tokens.
            max_bytes: what the buffers may take in all; at least one request always fits.

        Raises:
            ValueError: the budget or the number of heads is beyond what the kernels sort.
        """
        check_device_limits(split, num_qo_heads)
        width = -(-max_length // 128) * 128
        short = shortlist_length(split.selected)
        longest = max(split.selected, short)
        bytes_per_row = 4 * width * (num_qo_heads + 1) + num_qo_heads * (4 * short + 8 * longest + 4) + 4
        rows = max(1, min(max_batch, max_bytes // bytes_per_row))
        return cls(
            scores=torch.empty(rows, num_qo_heads, width, dtype=torch.int32, device=device),
            keys=torch.empty(rows, width, dtype=torch.int32, device=device),
            shortlists=torch.empty(rows, num_qo_heads, short, dtype=torch.int32, device=device),
            counts=torch.empty(rows, num_qo_heads, dtype=torch.int32, device=device),
            unfinished=torch.empty(rows, dtype=torch.int32, device=device),
            ranked=torch.empty(rows, num_qo_heads, longest, dtype=torch.int64, device=device),
        )

    @property
    def nbytes(self) -> int:
        """Device memory of the buffers, in bytes."""
        return sum(buffer.nbytes for buffer in vars(self).values())


def shortlist_length(selected: int) -> int:
    """Candidates that a shortlist holds: 1,024 for the default ``m`` of 1,536."""
    return min(1024, max(16, triton.next_power_of_2(max(selected, 1)) // 2))


def write_sparse_indptr(kv_indptr: Tensor, sparse_indptr: Tensor, batch: int, budget: int) -> None:
    """Fill ``sparse_indptr[: batch + 1]`` with the ends of ``min(n, K)`` tokens per request.

    Args:
        kv_indptr: [>= batch + 1] int32 on the device, the ends of the requests' tokens.
        sparse_indptr: [>= batch + 1] int32 on the device, written.
        batch: number of requests.
        budget: ``K``, tokens.
    """
    sparse_indptr_kernel[(1,)](kv_indptr, sparse_indptr, batch, budget, BLOCK=triton.next_power_of_2(max(batch, 2)))


def select_slots(
    q: Tensor,
    k_cache: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    sparse_indptr: Tensor,
    sparse_indices: Tensor,
    split: BudgetSplit,
    workspace: SelectWorkspace,
    config: LaunchConfig | None = None,
) -> None:
    """Choose every request's token set (arXiv 2508.07101) and write its cache slots in ascending position order.

    Args:
        q: [B, H, D] bfloat16, float16 or float32; the last dimension contiguous.
        k_cache: [slots, Hk, D], the dtype of ``q`` or float8_e4m3fn; the last dimension contiguous.
        kv_indptr: [>= B + 1] int32, ends of the requests' slots in ``kv_indices``.
        kv_indices: int32 slots of every request's tokens in position order, the current token included.
        sparse_indptr: [>= B + 1] int32, as ``write_sparse_indptr`` makes it.
        sparse_indices: [>= B * K] int32, written from ``sparse_indptr[b]`` on for request ``b``.
        split: the parts of the budget.
        workspace: from ``SelectWorkspace.allocate``; no request may be longer than its width.
        config: launch constants; results do not depend on them.

    Raises:
        ValueError: a shape, dtype, stride or device is not as above.
    """
    index = SlotIndex(kv_indptr, kv_indices, sparse_indptr, sparse_indices)
    _check(q, k_cache, index, split, workspace)
    for part in rounds(q, k_cache, index, split, workspace, config or LaunchConfig()):
        if split.selected:
            part.score()
            part.shortlist()
        part.emit()
        if split.selected:
            part.finish()


class SlotIndex(NamedTuple):
    """Where a batch's slots are read and written; see ``select_slots``."""

    kv_indptr: Tensor
    kv_indices: Tensor
    sparse_indptr: Tensor
    sparse_indices: Tensor


def rounds(
    q: Tensor,
    k_cache: Tensor,
    index: SlotIndex,
    split: BudgetSplit,
    workspace: SelectWorkspace,
    config: LaunchConfig,
) -> list[Round]:
    """The batch in parts that fit into the workspace; the arguments are not checked."""
    rows = workspace.scores.shape[0]
    return [
        Round(q, k_cache, index, split, workspace, config, first, min(rows, q.shape[0] - first))
        for first in range(0, q.shape[0], rows)
    ]


@dataclass(frozen=True)
class Round:
    """The four launches for ``rows`` requests from number ``first`` on, in the order of the methods."""

    q: Tensor
    k_cache: Tensor
    index: SlotIndex
    split: BudgetSplit
    workspace: SelectWorkspace
    config: LaunchConfig
    first: int
    rows: int

    def score(self) -> None:
        """Every query head's scores of all candidates."""
        config, num_kv_heads, head_dim = self.config, *self.k_cache.shape[1:]
        group = self.q.shape[1] // num_kv_heads
        tiles = triton.cdiv(self.workspace.keys.shape[1], config.block_n)
        splits = min(tiles, max(1, config.score_programs // (self.rows * num_kv_heads)))
        score_kernel[(splits, num_kv_heads, self.rows)](
            self.q,
            self.k_cache,
            kv_indices=self.index.kv_indices,
            num_splits=splits,
            q_stride_b=self.q.stride(0),
            q_stride_h=self.q.stride(1),
            k_stride_t=self.k_cache.stride(0),
            k_stride_h=self.k_cache.stride(1),
            budget=self.split.budget,
            group=group,
            GROUP_PAD=max(16, triton.next_power_of_2(group)),
            HEAD_DIM=head_dim,
            HEAD_DIM_PAD=triton.next_power_of_2(head_dim),
            BLOCK_N=config.block_n,
            UPCAST=self.q.dtype == torch.float32,
            num_warps=config.score_warps,
            **self._scores(),
            **self._keys(),
        )

    def shortlist(self) -> None:
        """Every head's best candidates in order, and the keys that follow from them."""
        num_heads, short = self.workspace.shortlists.shape[1:]
        shortlist_kernel[(num_heads, self.rows)](
            shortlists=self.workspace.shortlists,
            counts=self.workspace.counts,
            scratch=self.workspace.ranked,
            budget=self.split.budget,
            num_heads=num_heads,
            least=short * 3 // 4,
            MOST=short,
            BLOCK=self.config.shortlist_block,
            num_warps=self.config.shortlist_warps,
            **self._scores(),
            **self._keys(),
        )

    def emit(self) -> None:
        """The sets' slots, or a flag where the shortlists end too early."""
        config, (num_heads, short) = self.config, self.workspace.shortlists.shape[1:]
        tiles = triton.cdiv(self.workspace.keys.shape[1], config.emit_block)
        splits = min(tiles, max(1, config.emit_programs // self.rows))
        emit_kernel[(splits, self.rows)](
            shortlists=self.workspace.shortlists,
            counts=self.workspace.counts,
            unfinished=self.workspace.unfinished,
            num_splits=splits,
            budget=self.split.budget,
            selected=self.split.selected,
            num_heads=num_heads,
            SELECTS=self.split.selected > 0,
            MOST=short,
            HEADS=triton.next_power_of_2(max(num_heads, 2)),
            BLOCK=config.emit_block,
            num_warps=config.emit_warps,
            **self._slots(),
            **self._keys(),
        )

    def finish(self) -> None:
        """The complete ranking of flagged requests; its programs end at once for all others."""
        config, selected, num_heads = self.config, self.split.selected, self.workspace.scores.shape[1]
        full_rank_kernel[(num_heads, self.rows)](
            ranked=self.workspace.ranked,
            unfinished=self.workspace.unfinished,
            ranked_stride_b=self.workspace.ranked.stride(0),
            ranked_stride_h=self.workspace.ranked.stride(1),
            selected=selected,
            num_heads=num_heads,
            SELECTED_PAD=triton.next_power_of_2(max(selected, 2)),
            BLOCK=config.block,
            num_warps=config.warps,
            **self._scores(),
            **self._keys(),
        )
        full_emit_kernel[(self.rows,)](
            unfinished=self.workspace.unfinished,
            selected=selected,
            key_limit=selected * num_heads,
            KEY_PASSES=max(1, -(-max(selected * num_heads - 1, 1).bit_length() // 8)),
            BLOCK=config.block,
            num_warps=config.warps,
            **self._slots(),
            **self._keys(),
        )

    def _scores(self) -> dict[str, Any]:
        scores = self.workspace.scores
        return {"scores": scores, "scores_stride_b": scores.stride(0), "scores_stride_h": scores.stride(1)}

    def _keys(self) -> dict[str, Any]:
        """What every launch takes: the keys, the requests, where the candidates begin and end."""
        return {
            "keys": self.workspace.keys,
            "keys_stride_b": self.workspace.keys.stride(0),
            "kv_indptr": self.index.kv_indptr,
            "first_request": self.first,
            "sinks": self.split.sinks,
            "recent": self.split.recent,
        }

    def _slots(self) -> dict[str, Any]:
        index = self.index
        return {
            "kv_indices": index.kv_indices,
            "sparse_indptr": index.sparse_indptr,
            "sparse_indices": index.sparse_indices,
        }


def _check(q: Tensor, k_cache: Tensor, index: SlotIndex, split: BudgetSplit, workspace: SelectWorkspace) -> None:
    if q.ndim != 3 or k_cache.ndim != 3 or q.shape[2] != k_cache.shape[2] or q.shape[1] % k_cache.shape[1]:
        raise ValueError(
            f"q {list(q.shape)} and k_cache {list(k_cache.shape)}: expected [B, H, D] and [slots, Hk, D] with H a "
            "multiple of Hk"
        )
    if q.dtype not in SCORE_DTYPES[:3] or k_cache.dtype not in (q.dtype, torch.float8_e4m3fn):
        raise ValueError(
            f"q of {q.dtype} with k_cache of {k_cache.dtype}: expected one of {SCORE_DTYPES[:3]} and the same or fp8"
        )
    if q.stride(2) != 1 or k_cache.stride(2) != 1:
        raise ValueError("q and k_cache: expected a contiguous last dimension")
    for tensor in index:
        if tensor.dtype != torch.int32 or not tensor.is_contiguous():
            raise ValueError(f"index of {tensor.dtype}, shape {list(tensor.shape)}: expected contiguous torch.int32")
    if any(tensor.device != q.device for tensor in (k_cache, *index, workspace.scores)):
        raise ValueError(f"tensors on several devices: expected all on {q.device}")
    short = shortlist_length(split.selected)
    if workspace.ranked.shape[1:] != (q.shape[1], max(split.selected, short)) or workspace.shortlists.shape[2] != short:
        raise ValueError(
            f"workspace for another head count or budget: expected {q.shape[1]} heads, m = {split.selected}"
        )
    if len(index.sparse_indices) < q.shape[0] * split.budget:
        raise ValueError(
            f"sparse_indices of {len(index.sparse_indices)}: expected at least B * K = {q.shape[0] * split.budget}"
        )
