"""How many tokens are drafted: against what every choice is worth, counted outcome by outcome."""

from __future__ import annotations

import itertools
import random

import pytest

from lim_sglang.speculative.costs import Costs, StepTime
from lim_sglang.speculative.policy import Acceptance, DraftPolicy

BUDGET, MOST = 2048, 6


def flat(milliseconds: float, token_ms: float = 0.0) -> StepTime:
    return StepTime((1, 64), (milliseconds, milliseconds), (token_ms, token_ms))


H100 = Costs(dense=flat(6.9, 4.78e-5), draft=flat(7.8, 4.8e-6), verify=flat(7.6, 4.9e-5), round_ms=1.0)


def policy_at(share: float, costs: Costs | None = H100) -> DraftPolicy:
    """One that has seen many rounds in which this share was accepted."""
    policy = DraftPolicy(MOST, BUDGET, costs)
    policy.acceptance = Acceptance(prior=share, weight=1e9)
    return policy


def worth(costs: Costs, share: float, lengths: list[int], drafting: list[bool], number: int) -> float:
    """Tokens per millisecond of a batch, by every outcome of the drafts of one request."""
    batch, cached, read = len(lengths), sum(lengths), sum(max(length, BUDGET) for length in lengths)
    if number == 0:
        return batch / costs.dense.at(batch, cached)
    accepted = 0.0
    for outcome in itertools.product([True, False], repeat=number):
        chance = 1.0
        for right in outcome:
            chance *= share if right else 1 - share
        accepted += chance * (outcome.index(False) if False in outcome else number)
    spent = number * costs.draft.at(batch, read) + costs.verify.at(batch, cached) + costs.round_ms
    return (batch + accepted * sum(drafting)) / spent


@pytest.mark.parametrize("seed", range(40))
def test_the_choice_is_the_best(seed: int) -> None:
    draw = random.Random(seed)
    batch = draw.randrange(1, 33)
    lengths = [draw.randrange(100, 60_000) for _ in range(batch)] + [BUDGET + 1]
    drafting = [draw.random() < 0.8 for _ in range(batch)] + [True]
    share = draw.uniform(0.3, 1.0)
    chosen = policy_at(share).choose_num_drafts(lengths, drafting)
    of_all = [worth(H100, share, lengths, drafting, number) for number in range(MOST + 1)]
    assert of_all[chosen] >= max(of_all) / DraftPolicy.MARGIN
    assert chosen == 0 or of_all[chosen] == max(of_all)


@pytest.mark.parametrize(("gain", "drafts"), [(1.005, False), (1.015, True)])
def test_a_gain_of_less_than_a_hundredth_is_none(gain: float, drafts: bool) -> None:
    """All drafts are accepted, and every number of them gains as much."""
    costs = Costs(dense=flat(gain), draft=flat(1), verify=flat(1))
    assert (policy_at(1.0, costs).choose_num_drafts([BUDGET + 1], [True]) > 0) is drafts


def test_within_the_budget_nothing_is_drafted_whatever_it_costs() -> None:
    free = Costs(flat(100), flat(0.001), flat(1))
    assert policy_at(1.0, free).choose_num_drafts([BUDGET, 7], [True, True]) == 0
    assert policy_at(1.0, free).choose_num_drafts([BUDGET + 1, 7], [True, True]) == MOST


def test_without_costs_all_that_may_are_drafted_for() -> None:
    policy = policy_at(0.0, None)
    assert policy.choose_num_drafts([7], [True]) == MOST
    assert policy.choose_num_drafts([7, 9], [False, True]) == MOST
    assert policy.choose_num_drafts([7], [False]) == 0


@pytest.mark.parametrize("share", [0.2, 0.7, 0.97])
def test_the_share_is_learnt(share: float) -> None:
    draw, acceptance = random.Random(1), Acceptance()
    for _ in range(200):
        rounds = [next((n for n in range(MOST) if draw.random() >= share), MOST) for _ in range(8)]
        acceptance.observe(rounds, MOST)
    assert acceptance.rate == pytest.approx(share, abs=0.1)


def test_a_request_that_drafts_nothing_teaches_nothing() -> None:
    policy = DraftPolicy(MOST, BUDGET, H100)
    before = policy.acceptance.rate
    policy.observe([], MOST)
    assert policy.acceptance.rate == before


def test_drafts_are_tried_again_after_some_hundred_steps_without() -> None:
    policy = DraftPolicy(MOST, BUDGET, H100)
    for _ in range(50):
        policy.observe([0] * 8, MOST)
    long, all_may = [32_000] * 8, [True] * 8
    assert policy.choose_num_drafts(long, all_may) == 0
    without = 0
    while policy.choose_num_drafts(long, all_may) == 0:
        policy.observe([], 0)
        without += 1
        assert without < 5000
    assert without > 100
