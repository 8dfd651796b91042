"""Ends a request at the token at which one token a step would have ended it, where a step brings several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lim_patches.patch import Patch


def token_by_token(original: Callable[..., None], req: Any, new_accepted_len: int = 1) -> None:
    """Show SGLang the new tokens one by one.

    Those behind the end stay until it is told (``drop_behind_end``), as their slots are freed by their number. As
    reasoning they were counted before anything was known of an end.
    """
    if new_accepted_len < 2 or req.finished() or req.to_finish:
        original(req, new_accepted_len)
        return
    run = req.output_ids[-new_accepted_len:]
    del req.output_ids[-new_accepted_len:]
    for count, token in enumerate(run, 1):
        req.output_ids.append(token)
        original(req, 1)
        if req.finished():
            if req.finished_len is None:
                req.finished_len = len(req.output_ids)
            req.reasoning_tokens = min(req.reasoning_tokens, req.finished_len)
            req.output_ids.extend(run[count:])
            return


PATCH = Patch("sglang.srt.managers.schedule_batch.Req.update_finish_state", token_by_token, "around")
