"""An SGLang plugin: the lossless mode accepts as many drafts as it is told, whatever the model says.

What dummy weights accept, none or all, depends on the prompts alone. ``lossless`` installs this for the engine it
starts and writes the share of drafts to accept, given that those before were, into the file that
``LIM_BENCH_ACCEPTANCE`` names (while that is empty, the model decides). All requests of a batch accept alike, so that
they end together. Everything else runs as it does otherwise.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from bench import plugins

FILE = "LIM_BENCH_ACCEPTANCE"
_rounds = count(1)  # alike on all ranks


def register() -> None:
    """Replace the verdict where SGLang's worker asks for it; SGLang calls this in every process."""
    from lim_sglang.speculative import worker

    worker.verify = imposed(worker.verify)


def imposed(original: Callable[..., Any]) -> Callable[..., Any]:
    """``sampling.verify`` with another number of accepted drafts."""

    def verify(logits: Any, drafts: Any, *more: Any) -> Any:
        verdict = original(logits, drafts, *more)
        share = Path(os.environ[FILE]).read_text()
        if drafts is not None and share:
            verdict.num_accepted.fill_(run_length(float(share), drafts.tokens.shape[1]))
        return verdict

    return verify


def run_length(share: float, drafts: int) -> int:
    """How many of the drafts come before the first that is not accepted.

    From numbers that are spread evenly over all rounds, so that few rounds have about the mean of many.
    """
    spread = next(_rounds) * (math.sqrt(5) - 1) / 2 % 1
    if share >= 1 or spread == 0:
        return drafts
    return min(drafts, int(math.log(spread) / math.log(share))) if share > 0 else 0


def install(folder: Path) -> Path:
    """Make this plugin known to engines that this process starts; the file that says which share to accept."""
    return plugins.install(folder, __name__, FILE)
