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


@pytest.mark.parametrize("batch", [8, 64])
def test_drafts_are_tried_again_after_some_hundred_steps_without(batch: int) -> None:
    policy = DraftPolicy(MOST, BUDGET, H100)
    for _ in range(50):
        policy.observe([0] * batch, MOST)
    long, all_may = [32_000] * batch, [True] * batch
    assert policy.choose_num_drafts(long, all_may) == 0
    without = 0
    while policy.choose_num_drafts(long, all_may) == 0:
        policy.observe([], 0)
        without += 1
        assert without <= 1000
    assert without > 100


# Milliseconds of Qwen3-8B's steps on an H200, drafts by int8 copies: batch, plain step, draft, verification.
H200 = {"1x1500": (1, 5.25, 3.36, 5.2), "1x8000": (1, 5.48, 3.4, 5.5), "8x8000": (8, 7.59, 4.2, 7.8)}
H200 |= {"16x1500": (16, 6.2, 4.6, 7.4), "32x1500": (32, 6.95, 6.3, 10), "8x32000": (8, 12.9, 5.1, 13.9)}


@pytest.mark.parametrize("share", [0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98])
@pytest.mark.parametrize("shape", H200)
def test_it_is_found_out_whether_drafts_pay_and_failing_tries_cost_a_hundredth(shape: str, share: float) -> None:
    batch, dense, draft, verify = H200[shape]
    costs, random_numbers = Costs(flat(dense), flat(draft), flat(verify), round_ms=1.5), random.Random(1)
    policy = DraftPolicy(MOST, BUDGET, costs, drafts_within_budget=True)
    tokens = spent = 0.0
    while tokens < 6000:
        number = policy.choose_num_drafts([BUDGET] * batch, [True] * batch)
        accepted = [next((n for n in range(number) if random_numbers.random() >= share), number) for _ in range(batch)]
        policy.observe(accepted, number)
        tokens += 1 + sum(accepted) / batch
        spent += number * draft + verify + costs.round_ms if number else dense
    gain = tokens * dense / spent
    best = max(dense * worth(costs, share, [BUDGET] * batch, [True] * batch, number) / batch for number in range(7))
    assert gain > 0.99
    assert gain > 0.97 * best
