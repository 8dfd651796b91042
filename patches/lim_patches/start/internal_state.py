"""The plugin's plan and counters in ``GET /server_info``, under ``internal_states[i]["lim"]``."""

from __future__ import annotations

from typing import Any

from lim_patches.patch import Patch
from lim_sglang import metrics


def add_lim(result: Any, _scheduler: Any, recv_req: Any = None) -> Any:
    report = metrics.report()
    if report is not None:
        result.internal_state["lim"] = report
    return result


PATCH = Patch(
    "sglang.srt.managers.scheduler.Scheduler.get_internal_state",
    add_lim,
    "after",
    only_if_loaded="sglang.srt.managers.scheduler",
)
