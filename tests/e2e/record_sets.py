"""An SGLang plugin for tests: writes down every token set that this process selects on a CPU.

One file per process in the folder of ``FOLDER``, by its number among all: a line per SELECT layer and step with the
requests' lengths and the sets' positions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

SELECT = "lim_sglang.attention.torch_native.select_token_set"
FOLDER = "LIM_TEST_SETS"


def register() -> None:
    """Hook the selection; SGLang calls this in every process."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(SELECT, record, HookType.AROUND)


def record(original: Callable[..., Any], scores: Any, seq_lens: Any, split: Any, shard: Any = None) -> Any:
    """One selection."""
    from torch import distributed

    chosen = original(scores, seq_lens, split, shard)
    line = {
        "lengths": seq_lens.tolist(),
        "sets": [
            positions[:length] for positions, length in zip(chosen.positions.tolist(), chosen.lengths, strict=True)
        ],
    }
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    with (Path(os.environ[FOLDER]) / f"{rank}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return chosen


def read(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """The lines by process, in order."""
    return {
        int(path.stem): [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    }
