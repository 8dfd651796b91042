"""The scratch memory of a SELECT layer, made once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from lim_kernels.select.budget import BudgetParts, check_device_limits

SPAN = 16  # positions that share a maximum
WIDTH_MULTIPLE = 128  # every tile of scores ends within a row


@dataclass(frozen=True)
class SelectWorkspace:
    """Scratch of one selection, for up to ``rows`` requests at a time; larger batches go in several chunks.

    Attributes:
        scores: [rows, H, N] int32, ordered as the scores are.
        maxima: [rows, H, N // SPAN] int32, the highest score of every ``SPAN`` positions.
        ranks: [rows, N] int32, the tokens' unified ranks.
        shortlists: [rows, H, S] int32, positions by the head's own rank; ``S`` is what ``shortlist_length`` says.
        counts: [rows, H] int32, complete ranks of the shortlists.
        spans, best: [rows, H, S] and [rows, H, 2, S] int32.
        unfinished: [rows] int32, 1 for requests that need the complete ranking.
        ranked: [rows, H, m] int64.
    """

    scores: Tensor
    maxima: Tensor
    ranks: Tensor
    shortlists: Tensor
    counts: Tensor
    spans: Tensor
    best: Tensor
    unfinished: Tensor
    ranked: Tensor

    @classmethod
    def allocate(
        cls,
        max_batch: int,
        max_length: int,
        num_qo_heads: int,
        parts: BudgetParts,
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
        check_device_limits(parts, num_qo_heads)
        width = -(-max_length // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        short = shortlist_length(parts.selected)
        shapes = {
            "scores": (num_qo_heads, width),
            "maxima": (num_qo_heads, width // SPAN),
            "ranks": (width,),
            "shortlists": (num_qo_heads, short),
            "counts": (num_qo_heads,),
            "spans": (num_qo_heads, short),
            "best": (num_qo_heads, 2, short),
            "unfinished": (),
            "ranked": (num_qo_heads, max(1, parts.selected)),
        }
        dtypes = dict.fromkeys(shapes, torch.int32) | {"ranked": torch.int64}
        bytes_per_row = sum(math.prod(shape) * dtypes[name].itemsize for name, shape in shapes.items())
        rows = max(1, min(max_batch, max_bytes // bytes_per_row))
        buffers = {n: torch.empty(rows, *shape, dtype=dtypes[n], device=device) for n, shape in shapes.items()}
        return cls(**buffers)

    @property
    def nbytes(self) -> int:
        """Device memory of the buffers, in bytes."""
        return sum(buffer.nbytes for buffer in vars(self).values())


def shortlist_length(selected: int) -> int:
    """Candidates that a shortlist holds: 1,024 for the default ``m`` of 1,536."""
    return min(1024, max(32, triton.next_power_of_2(max(selected, 1)) // 2))
