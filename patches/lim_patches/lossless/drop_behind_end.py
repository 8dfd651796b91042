"""Drops the tokens behind a request's end once it is told: a session's next turn would stand on them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lim_patches.patch import Patch


def drop_behind_end(_result: Any, _streamer: Any, reqs: Iterable[Any], *_args: Any, **_options: Any) -> None:
    """Cut the output of those of ``reqs`` that have ended; their slots are free by then."""
    for req in reqs:
        if req.finished() and req.finished_len is not None:
            del req.output_ids[req.finished_len :]


PATCH = Patch(
    "sglang.srt.managers.scheduler_components.output_streamer.SchedulerOutputStreamer.stream_output",
    drop_behind_end,
    "after",
)
