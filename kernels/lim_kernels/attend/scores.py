"""The scores that a SELECT layer's attention leaves behind for the selection, and their sentinels."""

import triton
import triton.language as tl

UNRANKED = tl.constexpr(2**31 - 1)  # the key of a token that no head ranks among its first m
LOWEST = tl.constexpr(-(2**31))  # what is no candidate; below every score


@triton.jit
def store_scores(score, position, span, scores, maxima, keys, kept, sinks, end, resets_keys, SPAN: tl.constexpr):
    """Leave a tile of scores behind, as int32 that order as the scores do, and the highest of every ``SPAN`` positions.

    ``score``: [ROWS, BLOCK_N] float32; ``scores``, ``maxima``: [ROWS, 1] pointers to the heads' rows;
    ``kept``: [ROWS], whose to store. What is no candidate gets the lowest value there is, which no score has.
    """
    candidate = (position >= sinks) & (position < end)
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)  # -0.0 ties with 0.0
    ordered = tl.where(candidate[None, :], bits ^ ((bits >> 31) & 0x7FFFFFFF), LOWEST)
    tl.store(scores + position[None, :], ordered, mask=kept[:, None])
    by_span = tl.reshape(ordered, [score.shape[0], score.shape[1] // SPAN, SPAN])
    tl.store(maxima + span[None, :], tl.max(by_span, 2), mask=kept[:, None])
    tl.store(keys + position, UNRANKED, mask=(position >= 0) & resets_keys)
