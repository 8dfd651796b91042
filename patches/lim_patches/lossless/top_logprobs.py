"""Gives each token of a streamed chat's event its own alternatives, where SGLang repeats the first one's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lim_patches.patch import Patch


def by_token(original: Callable[..., Any], serving: Any, logprobs: Any, use_token_index: bool = False) -> Any:
    """Index alternatives by token, as answers that are not streamed have them; an event's are as many as its tokens."""
    return original(serving, logprobs, use_token_index=True)


PATCH = Patch(
    "sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat._process_logprobs_tokens",
    by_token,
    "around",
    in_some_releases=True,
)
