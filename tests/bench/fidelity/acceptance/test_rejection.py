"""Expected accepted drafts against an enumeration of the algorithm itself: every string of drafts, drawn from ``q``."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from bench.fidelity.acceptance.rejection import chance_of_all, probabilities

VOCAB, DRAFTS = 4, 3
TEMPERATURES = [0.6, 1.0, 2.0]

Logits = dict[tuple[int, ...], Tensor]


def toy_model(seed: int) -> Logits:
    """[V] logits behind every string of fewer than ``DRAFTS`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    strings = [ids for length in range(DRAFTS) for ids in product(range(VOCAB), repeat=length)]
    return {ids: 2 * torch.randn(VOCAB, generator=generator) for ids in strings}


TARGET, DRAFT = toy_model(1), toy_model(2)


def softmax(logits: Tensor, temperature: float) -> list[float]:
    scaled = [float(x) / temperature for x in logits]
    total = sum(2.718281828459045**x for x in scaled)
    return [2.718281828459045**x / total for x in scaled]


def chain(temperature: float, drafts: int, greedy_drafts: bool) -> float:
    """Mean accepted drafts, by all strings that may be drafted: the definition, which knows no text of the target."""
    mean = 0.0
    for ids in product(range(VOCAB), repeat=drafts):
        drawn = accepted = 1.0
        for i, token in enumerate(ids):
            p = softmax(TARGET[ids[:i]], temperature)[token]
            q = softmax(DRAFT[ids[:i]], temperature)[token]
            if greedy_drafts:
                q = float(token == int(DRAFT[ids[:i]].argmax()))
            drawn *= q
            accepted *= min(1.0, p / q) if q else 0.0
            # Strings with the same beginning share what is accepted so far: each adds its part of it.
            mean += drawn * accepted / VOCAB ** (drafts - i - 1)
    return mean


def by_text(temperature: float, drafts: int, greedy_drafts: bool) -> float:
    """The mean of the estimate over all texts that the target may write."""
    mean = 0.0
    for ids in product(range(VOCAB), repeat=drafts):
        befores = [ids[:i] for i in range(drafts)]
        target = probabilities(torch.stack([TARGET[before] for before in befores]), temperature)
        draft = probabilities(torch.stack([DRAFT[before] for before in befores]), 0 if greedy_drafts else temperature)
        written = float(target[range(drafts), list(ids)].prod())
        mean += written * float(chance_of_all(target, draft, torch.tensor(ids)).sum())
    return mean


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("drafts", [1, 2, 3])
@pytest.mark.parametrize("greedy_drafts", [False, True], ids=["drawn", "greedy drafts"])
def test_the_mean_is_that_of_drafts_drawn_and_rejected(temperature: float, drafts: int, greedy_drafts: bool) -> None:
    expected = chain(temperature, drafts, greedy_drafts)
    assert 0.1 < expected < drafts - 0.1, "nothing to tell apart"
    assert by_text(temperature, drafts, greedy_drafts) == pytest.approx(expected, abs=1e-5)


def test_greedy_rounds_end_at_the_first_difference() -> None:
    target, draft = torch.zeros(5, VOCAB), torch.zeros(5, VOCAB)
    choices = [2, 0, 1, 3, 3]
    target[range(5), choices] = 1
    draft[range(5), [2, 0, 3, 3, 3]] = 1
    chances = chance_of_all(probabilities(target, 0), probabilities(draft, 0), torch.tensor(choices))
    assert chances.tolist() == [1, 1, 0, 0, 0]


def test_equal_drafts_are_accepted() -> None:
    logits = torch.stack([TARGET[()]] * 3)
    for temperature in (0, 1e-3, 0.6, 1.0):
        p = probabilities(logits, temperature)
        best = logits.argmax(-1)
        assert chance_of_all(p, p, best).tolist() == pytest.approx([1, 1, 1])
