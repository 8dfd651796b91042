"""Which requests may draft: those for which the distribution of every later token is known from the drafts' logits."""

from __future__ import annotations

from typing import Any


def may_draft(req: Any) -> bool:
    """Whether this request accepts drafts in the coming round; else it gets one token by dense attention.

    Penalties, grammars and custom logit processors change the distribution with every token of the output. SGLang
    applies them to the round's first token only, so that is all such a request takes. ``min_new_tokens`` forbids the
    end of the output up to a length.
    """
    params = req.sampling_params
    neutral = not params.frequency_penalty and not params.presence_penalty and params.repetition_penalty == 1
    free = req.grammar is None and not req.custom_logit_processor
    return neutral and free and len(req.output_ids) >= params.min_new_tokens
