"""Answers are the same, differ by a near-tie, or differ."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from bench.soak.client import Outcome
from bench.soak.replay import Replayed, evenly, replay
from bench.soak.traffic import Limits, Maker

AGAIN = [5, 6]
TOPS = [[[-0.125, 5, None], [-2.5, 7, None]], [[-0.75, 6, None], [-0.75, 4, None], [-0.5, 8, None]]]


@pytest.mark.parametrize("status", [200, 503])
@pytest.mark.parametrize(
    ("answer", "tolerance", "expected"),
    [
        ([5, 6], 0.0, Replayed(1, 2)),
        ([5, 4], 0.0, Replayed(1, 1, near_ties=1)),
        ([5, 8], 0.25, Replayed(1, 1, near_ties=1)),
        ([5, 8], 0.0, Replayed(1, 1, differing=[0])),
        ([7, 6], 0.25, Replayed(1, differing=[0])),
        ([9, 6], 9.0, Replayed(1, differing=[0])),
        ([5], 9.0, Replayed(1, 1, differing=[0])),
        ([5, 6, 7], 9.0, Replayed(1, 2, differing=[0])),
    ],
)
def test_answers_are_asked_for_again(answer: list[int], tolerance: float, expected: Replayed, status: int) -> None:
    """A refused replay differs, whatever came with the refusal."""
    limits = Limits(prompt=30, output=20, context=1000)
    maker = Maker(next(seed for seed in range(99) if Maker(seed, limits).operation(0).compared), limits)
    asked: list[dict[str, object]] = []
    outcomes = [Outcome(0, "plain", "answered", 200, answer), Outcome(0, "plain", "answered", 200, answer, 1)]

    def serve(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        return httpx.Response(status, json={"output_ids": AGAIN, "meta_info": {"output_top_logprobs": TOPS}})

    async def ask(retracted: bool) -> Replayed:
        async with httpx.AsyncClient(transport=httpx.MockTransport(serve), base_url="http://server") as client:
            return await replay(client, maker, outcomes, most=10, retracted=retracted, tolerance=tolerance)

    assert asyncio.run(ask(retracted=False)) == (expected if status == 200 else Replayed(1, differing=[0]))
    assert [request["input_ids"] for request in asked] == [maker.operation(0).body["input_ids"]]
    assert asyncio.run(ask(retracted=True)).asked == 2


@pytest.mark.parametrize(("most", "numbers"), [(3, [0, 3, 6]), (99, [*range(10)]), (None, [*range(10)])])
def test_replays_are_taken_evenly(most: int | None, numbers: list[int]) -> None:
    outcomes = [Outcome(number, "plain", "answered") for number in range(10)]
    assert [outcome.number for outcome in evenly(outcomes, most)] == numbers
    assert evenly([], most) == []
