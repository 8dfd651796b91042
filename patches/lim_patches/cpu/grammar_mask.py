"""Masks logits by a grammar on a CPU, with xgrammar: SGLang's own mask raises there and ends the scheduler."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lim_patches.patch import Patch

if TYPE_CHECKING:
    import torch


def mask(original: Callable[..., None], logits: torch.Tensor, vocab_mask: torch.Tensor) -> None:
    """Set the logits of forbidden tokens to minus infinity, in place.

    Args:
        logits: [B, vocabulary] of any float dtype.
        vocab_mask: [B, ceil(vocabulary / 32)] int32, a bit per token, 0 where it is forbidden.
    """
    from xgrammar import apply_token_bitmask_inplace

    on_cpu = logits.device.type == "cpu"
    (apply_token_bitmask_inplace if on_cpu else original)(logits, vocab_mask)


def mask_by_request(
    original: Callable[..., None], grammar: Any, logits: torch.Tensor, vocab_mask: torch.Tensor
) -> None:
    """The same, as a method of a request's grammar."""
    mask(functools.partial(original, grammar), logits, vocab_mask)


_MODULE = "sglang.srt.constrained.xgrammar_backend"
_SCHEDULER = "sglang.srt.managers.scheduler"
PATCHES = (
    Patch(f"{_MODULE}.XGrammarGrammar.apply_vocab_mask", mask_by_request, "around", _SCHEDULER, only_on_cpu_host=True),
    Patch(f"{_MODULE}.XGrammarGrammarBackend.apply_vocab_mask", mask, "around", _SCHEDULER, only_on_cpu_host=True),
)
