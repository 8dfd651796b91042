"""An SGLang plugin that times the attention backend's host work before every captured decode step.

``engine_arm`` installs it for the engine it starts and reads the file named by ``LIM_BENCH_HOST_TIMES``.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import plugins

FILE = "LIM_BENCH_HOST_TIMES"
METHOD = "init_forward_metadata_out_graph"  # the backend's part of a captured step
OWNERS = {
    "dense": f"sglang.srt.layers.attention.flashinfer_backend.FlashInferAttnBackend.{METHOD}",
    "lim": f"lim_sglang.attention.flashinfer.LimFlashInferBackend.{METHOD}",  # calls the dense one
}
EVERY = 50  # calls per line of the file
_times: dict[str, list[float]] = defaultdict(list)


def register() -> None:
    """Hook both backends' methods; SGLang calls this in every process."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for name, target in OWNERS.items():
        HookRegistry.register(target, timed(name), HookType.AROUND)


def timed(name: str) -> Callable[..., Any]:
    """A hook that collects the time of decode steps that are replayed."""

    def hook(original: Callable[..., Any], self: Any, forward_batch: Any, in_capture: bool = False) -> Any:
        began = time.perf_counter()
        result = original(self, forward_batch, in_capture)
        if not in_capture and forward_batch.forward_mode.is_decode():
            collect(name, (time.perf_counter() - began) * 1e6)
        return result

    return hook


def collect(name: str, microseconds: float) -> None:
    """Add one call; every ``EVERY`` calls, one line goes to the file."""
    found = _times[name]
    found.append(microseconds)
    if len(found) == EVERY:
        with Path(os.environ[FILE]).open("a") as file:
            file.write(json.dumps({"name": name, "us": statistics.median(found)}) + "\n")
        found.clear()


def read(path: Path) -> dict[str, float]:
    """The median microseconds of a call by owner; empty where no captured step ran."""
    by_name = defaultdict(list)
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        by_name[entry["name"]].append(entry["us"])
    return {name: round(statistics.median(found), 1) for name, found in by_name.items()}


def install(folder: Path) -> Path:
    """Make engines that this process starts load the plugin; the file it writes."""
    return plugins.install(folder, __name__, FILE)
