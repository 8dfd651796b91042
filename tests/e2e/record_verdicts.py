"""An SGLang plugin for tests: writes down what every rank of the lossless mode makes of its drafts.

One file per process in the folder of ``FOLDER``, as ``record_sets`` has it: a line per step with the drafts, the tokens
and how many were accepted.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FOLDER = "LIM_TEST_VERDICTS"


def register() -> None:
    """Hook the acceptance where the worker asks for it; SGLang calls this in every process."""
    from lim_sglang.speculative import worker

    original = worker.verify

    def verify(logits: Any, drafts: Any, *more: Any) -> Any:
        from torch import distributed

        verified = original(logits, drafts, *more)
        rank = distributed.get_rank() if distributed.is_initialized() else 0
        drafted = None if drafts is None else drafts.tokens.tolist()
        line = {"drafts": drafted, "tokens": verified.tokens.tolist(), "accepted": verified.num_accepted.tolist()}
        with (Path(os.environ[FOLDER]) / f"{rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return verified

    worker.verify = verify
