"""The scores that a SELECT layer's attention leaves behind for the selection, and their sentinels."""

import triton
import triton.language as tl

UNRANKED = tl.constexpr(2**31 - 1)  # the unified rank of a token that no head ranks among its first m
LOWEST = tl.constexpr(-(2**31))  # what is no candidate; below every score


@triton.jit
def store_scores(score, position, span, scores, maxima, ranks, kept, sinks, end, resets_ranks, SPAN: tl.constexpr):
    """Store a tile of scores as int32 that order as the scores do, and the highest of every ``SPAN`` positions.

    ``score``: [ROWS, BLOCK_N] float32; ``scores``, ``maxima``: [ROWS, 1] pointers to the heads' rows; ``kept``: [ROWS],
    the rows to store; ``ranks``: pointer to the request's row, set to ``UNRANKED`` where ``resets_ranks``. A position
    that is no candidate gets the lowest value there is, which no score has.
    """
    candidate = (position >= sinks) & (position < end)  # [BLOCK_N]
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)  # -0.0 ties with 0.0
    ordered = tl.where(candidate[None, :], bits ^ ((bits >> 31) & 0x7FFFFFFF), LOWEST)
    # [ROWS, BLOCK_N]
    tl.store(scores + position[None, :], ordered, mask=kept[:, None])
    # [ROWS, BLOCK_N // SPAN, SPAN]
    by_span = tl.reshape(ordered, [score.shape[0], score.shape[1] // SPAN, SPAN])
    tl.store(maxima + span[None, :], tl.max(by_span, 2), mask=kept[:, None])
    tl.store(ranks + position, UNRANKED, mask=(position >= 0) & resets_ranks)
