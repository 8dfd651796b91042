"""The token set of one decode step, defined in plain torch (arXiv 2508.07101).

This is the specification: the CPU backend serves with it, and the device kernels are tested against it.

Every query head ranks the candidate tokens by its own score. The heads' lists are read rank by rank (rank 0 of
head 0, rank 0 of head 1, ...), and the first ``m`` distinct tokens are kept. The same set without a list merge: a
token that head ``h`` ranks at ``rank_h`` (from 0) gets the unified rank ``min over h of rank_h * H + h``.
These ranks are distinct, and the set is the ``m`` smallest. The sinks and the recency window complete it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lim_kernels.select.budget import BudgetParts
from lim_kernels.select.shard import HeadShard

NOT_A_CANDIDATE = 2**63 - 1  # the rank of a sink, of a token in the window, of a position beyond the sequence
_BELOW_ALL = -(2**63)  # orders behind every score, -inf included


class TokenSet(NamedTuple):
    """The tokens that the sparse layers attend to, one set per request.

    Attributes:
        positions: ``[B, K]`` int64, ascending positions in the sequence, then -1 up to the width ``K``.
        lengths: ``[B]`` int64, the number of positions, ``min(n, K)``.
    """

    positions: Tensor
    lengths: Tensor


def head_scores(q: Tensor, keys: Tensor) -> Tensor:
    """Score every cached token for every query head: ``q_h . k_t``, without scale or softmax.

    Args:
        q: ``[H, D]``, the query of one token, any floating dtype.
        keys: ``[n, Hk, D]``, any floating dtype; query head ``h`` reads KV head ``h // (H // Hk)``.

    Returns:
        ``[H, n]`` float32; inputs are converted to float32 first and products accumulate in float32.
    """
    num_tokens, num_kv_heads, head_dim = keys.shape
    grouped = q.float().view(num_kv_heads, -1, head_dim)  # [Hk, H // Hk, D]
    scores = torch.matmul(grouped, keys.float().permute(1, 2, 0))  # [Hk, H // Hk, n]
    return scores.reshape(q.shape[0], num_tokens)


def unified_ranks(scores: Tensor, seq_lens: Tensor, parts: BudgetParts) -> Tensor:
    """Give every candidate its place in the merged list of the heads; smaller is earlier.

    Candidates of a request with ``n`` tokens are the positions ``s .. n-w-1``. A head ranks them by descending
    score, the lower position first among equals.

    Args:
        scores: ``[B, H, N]`` float32, ±inf allowed, not NaN; entries at positions >= ``seq_lens`` are ignored.
        seq_lens: ``[B]`` int64, ``n`` of every request, 0 to ``N``.
        parts: the parts of the budget.

    Returns:
        ``[B, N]`` int64: ``min over h of rank_h * H + h`` for candidates, ``NOT_A_CANDIDATE`` elsewhere.

    Raises:
        ValueError: a length is not as above.
    """
    _check_lengths(scores, seq_lens)
    return _ranks_to_depth(scores, seq_lens, parts, depth=scores.shape[2])


def select_token_set(scores: Tensor, seq_lens: Tensor, parts: BudgetParts, shard: HeadShard | None = None) -> TokenSet:
    """Choose the tokens that the sparse layers attend to, for a ragged batch.

    A request with ``n <= K`` tokens keeps them all. A longer one keeps ``s`` sinks, the ``m`` candidates with the
    smallest unified ranks, and the last ``w`` tokens: exactly ``K``.

    Args:
        scores: ``[B, H, N]`` float32, ±inf allowed, not NaN; entries at positions >= ``seq_lens`` are ignored.
        seq_lens: ``[B]`` int64, ``n`` of every request, the current token included, 0 to ``N``.
        parts: the parts of the budget.
        shard: where ``scores`` are those of some of the heads, and other devices hold the rest: the set is the one of
            all heads. Every device calls with equal ``seq_lens`` and ``parts``.

    Returns:
        The ``TokenSet`` on the device of ``scores``; ``K`` is ``parts.budget``.

    Raises:
        ValueError: a length is not as above.
    """
    _check_lengths(scores, seq_lens)
    offsets = torch.arange(parts.budget, device=scores.device)
    positions = torch.where(offsets < seq_lens[:, None], offsets, -1)  # [B, K]
    over = seq_lens > parts.budget
    if over.any():
        positions[over] = _sets_over_budget(scores[over], seq_lens[over], parts, shard)
    return TokenSet(positions, seq_lens.clamp(max=parts.budget))


def _sets_over_budget(scores: Tensor, seq_lens: Tensor, parts: BudgetParts, shard: HeadShard | None) -> Tensor:
    """``[B, K]`` ascending positions; every request has more tokens than the budget."""
    # A head's first m tokens are m distinct ones, so no token ranked m or later by every head is selected.
    ranks = _ranks_to_depth(scores, seq_lens, parts, depth=parts.selected, shard=shard)
    if shard is not None and parts.selected:
        ranks = _ranks_of_all_devices(ranks, parts.selected, shard)
    selected = ranks.topk(parts.selected, dim=1, largest=False).indices  # [B, m]
    sinks = torch.arange(parts.sinks, device=scores.device).expand(len(seq_lens), -1)  # [B, s]
    recent = seq_lens[:, None] - torch.arange(1, parts.recent + 1, device=scores.device)  # [B, w]
    return torch.cat([sinks, selected, recent], dim=1).sort(dim=1).values


def _ranks_of_all_devices(ranks: Tensor, selected: int, shard: HeadShard) -> Tensor:
    """``[B, N]`` the smallest ranks that any device gives; tokens not among the first ``m`` of any device have none."""
    offered = torch.stack(ranks.topk(selected, dim=1, largest=False), dim=2)  # [B, m, 2], ranks and positions
    offered_ranks, positions = shard.gather(offered).transpose(0, 1).flatten(1, 2).unbind(2)  # [B, R * m] each
    return torch.full_like(ranks, NOT_A_CANDIDATE).scatter_reduce_(1, positions, offered_ranks, "amin")


def _ranks_to_depth(
    scores: Tensor, seq_lens: Tensor, parts: BudgetParts, depth: int, shard: HeadShard | None = None
) -> Tensor:
    """``unified_ranks`` from the first ``depth`` ranks of every head; tokens that all heads rank later have none."""
    batch, num_heads, width = scores.shape
    ranks = torch.full((batch, width), NOT_A_CANDIDATE, device=scores.device)
    ends = seq_lens - parts.recent  # [B], the first position behind the candidates
    order = _orderable(scores[:, :, parts.sinks : max(0, *ends.tolist(), parts.sinks)])  # [B, H, C]
    offsets = torch.arange(order.shape[2], device=scores.device)
    order.masked_fill_((parts.sinks + offsets >= ends[:, None])[:, None, :], _BELOW_ALL)
    ranked = order.topk(min(depth, order.shape[2]), dim=2)  # [B, H, depth]
    own_ranks = torch.arange(ranked.values.shape[2], device=scores.device)
    heads = torch.arange(num_heads, device=scores.device)[:, None]
    rank_heads, first_head = (shard.num_heads, shard.first_head) if shard else (num_heads, 0)
    head_ranks = (own_ranks * rank_heads + first_head + heads).expand_as(ranked.values)
    head_ranks = torch.where(ranked.values == _BELOW_ALL, NOT_A_CANDIDATE, head_ranks)
    return ranks.scatter_reduce_(1, ranked.indices.flatten(1) + parts.sinks, head_ranks.flatten(1), "amin")


def _orderable(scores: Tensor) -> Tensor:
    """Distinct int64 that order as (score, then lower position): ``[B, H, C]`` float32 -> ``[B, H, C]`` int64.

    Upper half: the bits of the float, the magnitude of negative ones flipped, which orders as the floats do.
    Lower half: the position counted from the end.
    """
    bits = (scores + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    from_end = torch.arange(scores.shape[2] - 1, -1, -1, device=scores.device)
    return bits.long().bitwise_left_shift_(32).bitwise_or_(from_end)


def _check_lengths(scores: Tensor, seq_lens: Tensor) -> None:
    wrong = seq_lens[(seq_lens < 0) | (seq_lens > scores.shape[2])]
    if len(wrong):
        raise ValueError(f"seq_lens with {int(wrong[0])}: expected 0 to {scores.shape[2]}, the width N of scores")
