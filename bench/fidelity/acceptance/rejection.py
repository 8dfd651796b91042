"""How many drafts a verifier accepts, exact but for the choice of one text.

A draft ``x ~ q`` is accepted with probability ``min(1, p(x) / q(x))``, and the first that is not ends the round
(arXiv 2211.17192). Whatever the draft was, the token that comes out is ``p``'s. So a draft is accepted, given the
token ``y`` that came out in its place, with probability ``min(1, q(y) / p(y))``, and text that the verifier wrote by
itself serves to follow a round: one forward pass over it instead of one draft after the other.

Greedy choice is the same with all probability on one token: accepted where both choose the same one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """[..., V] float32 logits to probabilities; at temperature 0 all of it lies on the most likely token."""
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1)
    return (logits / temperature).softmax(-1)


def chance_of_all(target: Tensor, draft: Tensor, ids: Tensor) -> Tensor:
    """[k] float64, the chance that drafts up to each one are accepted, as a mean over ``ids`` drawn from ``target``.

    Summed over ``k`` drafts, how many are accepted on average. ``target`` and ``draft``: [k, V] float32, the
    verifier's probabilities of token ``i`` behind the ``ids`` before it, and those that draft ``i`` is drawn from.
    """
    overlap = torch.minimum(target, draft).double().sum(-1)
    at = ids[:, None]
    accepted = (draft.gather(-1, at) / target.gather(-1, at)).double().clamp(max=1)[:, 0]
    before = torch.cat([accepted.new_ones(1), accepted[:-1]]).cumprod(0)
    return before * overlap
