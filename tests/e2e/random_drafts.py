"""An SGLang plugin for tests: the lossless mode's drafts are replaced by random tokens."""

from __future__ import annotations

from typing import Any

import torch


def register() -> None:
    """Hook the drafter; SGLang calls this in every process, and only those that serve have it loaded."""
    from lim_sglang.speculative import forward, sampling

    original = forward.LimDrafter.draft

    def draft(self: Any, batch: Any, last_tokens: Any, slots: Any, rule: Any, num_drafts: int) -> Any:
        drafts = original(self, batch, last_tokens, slots, rule, num_drafts)
        tokens = torch.randint_like(drafts.tokens, 1000, 40_000)
        proposals = None
        if drafts.proposals is not None:
            proposals = torch.zeros_like(drafts.proposals)
            proposals[..., 1000:40_000] = 1 / 39_000
        return sampling.Drafts(tokens, proposals)

    forward.LimDrafter.draft = draft  # type: ignore[method-assign]
