"""Expected accepted drafts against an enumeration of the algorithm itself: every string of drafts, drawn from ``q``."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from bench.fidelity.acceptance.rejection import chance_of_all, probabilities

VOCAB, DRAFTS = 4, 3
Ids = tuple[int, ...]


def toy_model(seed: int) -> dict[Ids, Tensor]:
    """[V] logits behind every string of fewer than ``DRAFTS`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    strings = [ids for length in range(DRAFTS) for ids in product(range(VOCAB), repeat=length)]
    return {ids: 2 * torch.randn(VOCAB, generator=generator) for ids in strings}


TARGET, DRAFT = toy_model(1), toy_model(2)


def chain(temperature: float, drafts: int, greedy_drafts: bool, ids: Ids = ()) -> float:
    """Mean accepted drafts behind ``ids``, by all that may be drafted: the definition, which knows no text."""
    if len(ids) == drafts:
        return 0.0
    p, q = (TARGET[ids] / temperature).softmax(-1), (DRAFT[ids] / temperature).softmax(-1)
    if greedy_drafts:
        q = one_hot(DRAFT[ids].argmax(), VOCAB)
    chances = {x: float(q[x] * min(1, p[x] / q[x])) for x in range(VOCAB) if q[x]}
    return sum(chance * (1 + chain(temperature, drafts, greedy_drafts, (*ids, x))) for x, chance in chances.items())


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
@pytest.mark.parametrize("drafts", [1, 2, 3])
@pytest.mark.parametrize("greedy_drafts", [False, True])
def test_the_mean_is_that_of_drafts_drawn_and_rejected(temperature: float, drafts: int, greedy_drafts: bool) -> None:
    """Over all texts that the target may write."""
    mean = 0.0
    for ids in product(range(VOCAB), repeat=drafts):
        p, q = (torch.stack([logits[ids[:i]] for i in range(drafts)]) for logits in (TARGET, DRAFT))
        target, draft = probabilities(p, temperature), probabilities(q, 0 if greedy_drafts else temperature)
        written = float(target[range(drafts), list(ids)].prod())
        mean += written * float(chance_of_all(target, draft, torch.tensor(ids)).sum())
    expected = chain(temperature, drafts, greedy_drafts)
    assert 0.1 < expected < drafts - 0.1, "nothing to tell apart"
    assert mean == pytest.approx(expected, abs=1e-5)
