"""What SGLang carries from one round to the next, and into the verification."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.speculative.spec_info import SpecInput, SpecInputType
from torch import Tensor


class RoundInput(SpecInput):
    """Between rounds the last output token of every request, whose K and V are not cached yet.

    During the verification the positions of its ``width`` tokens per request. SGLang's kinds of input are a closed
    list; that of its n-gram verification promises no more than this class holds.

    Attributes:
        bonus_tokens: [B] int64 the last output tokens, or None during the verification. SGLang's scheduler demands the
            name, from algorithms whose every round ends with a bonus token; here it says ``last_tokens``, as after a
            rejected draft, a prefill or a plain step the last token is none.
        positions: [B * width] int64, or None between rounds.
    """

    tree_topk = 1
    custom_mask = None
    # What the relay of SGLang's overlap scheduler reads of a draft model's input.
    topk_p = topk_index = hidden_states = dsa_topk_indices = None

    def __init__(self, width: int, last_tokens: Tensor | None = None, positions: Tensor | None = None) -> None:
        super().__init__(SpecInputType.NGRAM_VERIFY)
        self.draft_token_num = self.num_tokens_per_req = self.num_tokens_for_logprob_per_req = width
        self.bonus_tokens = last_tokens
        self.positions = positions
        self.future_indices: Tensor | None = None

    def filter_batch(self, new_indices: Tensor, **_: Any) -> None:
        """Keep these requests."""
        if self.bonus_tokens is not None:
            self.bonus_tokens = self.bonus_tokens[new_indices]
        if self.future_indices is not None:
            self.future_indices = self.future_indices[new_indices]

    def merge_batch(self, other: RoundInput) -> None:
        """Append the requests of another batch."""
        if self.bonus_tokens is not None and other.bonus_tokens is not None:
            self.bonus_tokens = torch.cat([self.bonus_tokens, other.bonus_tokens])
        if self.future_indices is not None and other.future_indices is not None:
            self.future_indices = torch.cat([self.future_indices, other.future_indices])
