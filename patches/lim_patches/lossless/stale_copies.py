"""Tells the lossless mode's worker that the model's weights may have changed: its drafts hold copies of them."""

from __future__ import annotations

from typing import Any

from lim_patches.patch import Patch

MANAGER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
WAYS = (
    *("update_weights_from_disk", "update_weights_from_distributed", "update_weights_from_tensor"),
    *("update_weights_from_ipc", "resume_memory_occupation", "check_weights"),
)
"""``check_weights`` can reset them; memory that was resumed without a backup holds nothing."""


def mark_stale(_result: Any, manager: Any, *_args: Any, **_options: Any) -> None:
    """Have the copies made anew before the next round, whether or not the update succeeded."""
    manager.draft_worker.mark_weights_stale()


PATCHES = (
    *(Patch(f"{MANAGER}.{way}", mark_stale, "after") for way in WAYS),
    Patch(f"{MANAGER}.end_weight_update", mark_stale, "after", in_some_releases=True),
)
