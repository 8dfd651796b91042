"""Ends a request while the KV pool still has room for its next step, where SGLang would abort it with an error."""

from __future__ import annotations

from typing import Any

from lim_patches.patch import Patch


def leave_room(_result: Any, scheduler: Any, req: Any) -> None:
    """Lower the most tokens that a request may generate, so that all of its steps find the slots that they reserve.

    A speculative step wants slots for two rounds behind the cached tokens; SGLang's own bound counts one token.
    """
    from sglang.srt.mem_cache.allocation_sizing import get_alloc_reserve_per_decode

    params, page = req.sampling_params, scheduler.page_size
    prompt, reserve = (-(-n // page) * page for n in (len(req.origin_input_ids), get_alloc_reserve_per_decode()))
    bound = max(1, scheduler.max_total_num_tokens - prompt - page - reserve)
    params.max_new_tokens = min(params.max_new_tokens, bound)
    params.min_new_tokens = min(params.min_new_tokens, params.max_new_tokens)


PATCH = Patch("sglang.srt.managers.scheduler.Scheduler.init_req_max_new_tokens", leave_room, "after")
