"""Answers are the same, differ by a near-tie, or differ."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise

import httpx
import pytest

from bench.soak.client import Outcome
from bench.soak.replay import Replayed, agreeing, evenly, likelihood_gap, replay
from bench.soak.traffic import Limits, Maker

TOPS = [[[-0.1, 5, None], [-2.5, 7, None]], [[-0.7, 6, None], [-0.8, 8, None]]]


@pytest.mark.parametrize(
    ("tokens", "gap"),
    [
        ([5, 6], 0.0),
        ([5, 8], 0.1),
        ([7, 8], 2.4),
        ([9, 6], None),
        ([5], None),
        ([5, 6, 7], None),
        ([], None),
    ],
)
def test_the_first_other_token_decides(tokens: list[int], gap: float | None) -> None:
    assert likelihood_gap(tokens, [5, 6], TOPS) == (gap if gap is None else pytest.approx(gap))


@pytest.mark.parametrize(
    ("answer", "tolerance", "expected"),
    [
        ([5, 6], 0.0, Replayed(1, 2)),
        ([5, 8], 0.25, Replayed(1, 1, near_ties=1)),
        ([5, 8], 0.0, Replayed(1, 1, differing=[0])),
        ([7, 6], 0.25, Replayed(1, differing=[0])),
    ],
)
def test_answers_are_asked_for_again(answer: list[int], tolerance: float, expected: Replayed) -> None:
    maker = Maker(next(seed for seed in range(99) if Maker(seed, LIMITS).operation(0).compared), LIMITS)
    asked: list[dict[str, object]] = []

    def serve(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        return httpx.Response(200, json={"output_ids": [5, 6], "meta_info": {"output_top_logprobs": TOPS}})

    async def ask() -> Replayed:
        async with httpx.AsyncClient(transport=httpx.MockTransport(serve), base_url="http://server") as client:
            outcomes = [Outcome(0, "plain", "answered", 200, answer), Outcome(0, "plain", "answered", 200, answer, 1)]
            return await replay(client, maker, outcomes, most=10, retracted=False, tolerance=tolerance)

    assert asyncio.run(ask()) == expected
    assert [request["input_ids"] for request in asked] == [maker.operation(0).body["input_ids"]]


def test_a_replay_that_takes_a_less_likely_token_differs() -> None:
    """The answer was right, then, and the replay is not."""
    unlikely = [[[-2.5, 5, None], [-0.1, 7, None]]]
    assert likelihood_gap([7], [5], unlikely) == pytest.approx(2.4)


@pytest.mark.parametrize(
    ("count", "most", "expected"), [(15, 8, 8), (199, 100, 100), (5, 8, 5), (9, None, 9), (0, 4, 0)]
)
def test_replays_are_taken_evenly(count: int, most: int | None, expected: int) -> None:
    outcomes = [Outcome(number, "plain", "answered") for number in range(count)]
    numbers = [outcome.number for outcome in evenly(outcomes, most)]
    assert len(numbers) == expected
    steps = {later - earlier for earlier, later in pairwise([*numbers, count])}
    assert not numbers or (numbers[0] == 0 and max(steps) - min(steps) <= 1)


def test_tokens_agree_up_to_the_first_other_one() -> None:
    assert [agreeing([1, 2, 3], other) for other in ([1, 2, 3], [1, 2], [1, 4, 3], [])] == [3, 2, 1, 0]


LIMITS = Limits(prompt=30, output=20, context=1000)
