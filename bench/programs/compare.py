"""Agreement of a program's run with the dense run of the same problem."""

from __future__ import annotations

import os
from collections.abc import Sequence


def agreement(dense: Sequence[Sequence[str]], other: Sequence[Sequence[str]]) -> float:
    """Share of generated characters before the first difference, over all chains; 1.0 if nothing was generated.

    What follows a difference within a chain had another prompt, so it does not count, even where it is equal. A chain
    or text that only one of the two has counts as different.
    """
    same = total = 0
    for number in range(max(len(dense), len(other))):
        one, two = (chains[number] if number < len(chains) else [] for chains in (dense, other))
        same += _same_characters(one, two)
        total += max(sum(map(len, one)), sum(map(len, two)))
    return same / total if total else 1.0


def _same_characters(one: Sequence[str], two: Sequence[str]) -> int:
    """Equal characters at the start of two chains; a text that ends earlier differs there."""
    same = 0
    for first, second in zip(one, two, strict=False):
        same += len(os.path.commonprefix([first, second]))
        if first != second:
            break
    return same
