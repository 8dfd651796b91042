"""What a client makes of what it is told: an answer that is not what was asked for is lost, however it comes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from bench.soak.client import Outcome, held_requests, left_after, perform, used_tokens
from bench.soak.traffic import Operation, encoded

ASKED: dict[str, Any] = {"input_ids": [1, 2], "sampling_params": {"max_new_tokens": 3, "ignore_eos": True}}


def operation(kind: str = "plain", *, more: dict[str, Any] | None = None, **other: Any) -> Operation:
    return Operation(5, kind, encoded(ASKED | (more or {})), **other)


def answer(tokens: list[int], reason: str | None = "length", *, text: str = "", retractions: int = 0) -> dict[str, Any]:
    end = reason and {"type": reason}
    return {"output_ids": tokens, "text": text, "meta_info": {"finish_reason": end, "num_retractions": retractions}}


def of(operation: Operation, response: httpx.Response, abort: int = 200) -> Outcome:
    """The outcome of an operation that is answered so."""

    def serve(request: httpx.Request) -> httpx.Response:
        return httpx.Response(abort) if request.url.path == "/abort_request" else response

    async def ask() -> Outcome:
        async with httpx.AsyncClient(transport=httpx.MockTransport(serve), base_url="http://server") as client:
            return await perform(client, operation)

    return asyncio.run(ask())


def stream(*events: Any) -> httpx.Response:
    return httpx.Response(200, text="".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n")


GRAMMAR = {"sampling_params": {"max_new_tokens": 3, "ignore_eos": False, "regex": "[0-9]{3}"}}


@pytest.mark.parametrize(
    ("found", "verdict", "more"),
    [
        (answer([7, 8, 9]), "answered", {}),
        (answer([7, 8]), "lost", {}),
        (answer([]), "lost", {}),
        (answer([7, 8, 9, 10]), "lost", {}),
        (answer([7, 8, 9], "abort"), "lost", {}),
        (answer([7, 8, 9], None), "lost", {}),
        (answer([7], "stop"), "lost", {}),
        (answer([7, 8], "stop", text="123"), "answered", GRAMMAR),
        (answer([7, 8], "stop", text="12x"), "lost", GRAMMAR),
        (answer([7, 8, 9], "length", text="12"), "answered", GRAMMAR),
        (answer([7, 8], "length", text="12"), "lost", GRAMMAR),
    ],
)
def test_an_answer_is_as_long_as_it_was_to_be(found: dict[str, Any], verdict: str, more: dict[str, Any]) -> None:
    outcome = of(operation(more=more), httpx.Response(200, json=found))
    assert outcome.verdict == verdict
    assert outcome.tokens == (found["output_ids"] if verdict == "answered" else None)
    assert bool(outcome.detail) == (verdict == "lost")


def test_every_one_of_several_answers_counts() -> None:
    asked = operation(answers=3)
    whole = [answer([1, 2, 3], retractions=1), answer([4, 5, 6]), answer([7, 8, 9], retractions=2)]
    outcome = of(asked, httpx.Response(200, json=whole))
    assert (outcome.verdict, outcome.tokens, outcome.retractions) == ("answered", [1, 2, 3], 3)
    assert of(asked, httpx.Response(200, json=whole[:2])).verdict == "lost"
    assert of(asked, httpx.Response(200, json=[*whole[:2], answer([7])])).verdict == "lost"


@pytest.mark.parametrize(("status", "verdict"), [(400, "refused"), (422, "refused"), (200, "lost"), (500, "lost")])
def test_only_a_refusal_refuses(status: int, verdict: str) -> None:
    assert of(operation(ending="refusal"), httpx.Response(status, json={})).verdict == verdict


FIRST = answer([7], None)


@pytest.mark.parametrize(
    ("events", "verdict"),
    [
        ([FIRST, answer([7, 8, 9])], "answered"),
        ([FIRST], "lost"),
        ([], "lost"),
        ([FIRST, answer([7, 8], "abort")], "lost"),
        ([FIRST, {"error": "no"}], "lost"),
    ],
)
def test_a_stream_is_read_to_its_end(events: list[Any], verdict: str) -> None:
    assert of(operation(more={"stream": True}), stream(*events)).verdict == verdict


@pytest.mark.parametrize(
    ("after", "events", "abort", "verdict"),
    [
        (1, [FIRST, answer([7, 8], "abort")], 200, "gone"),
        (1, [FIRST, answer([7, 8, 9])], 200, "late"),
        (1, [FIRST, answer([7, 8])], 200, "lost"),
        (1, [FIRST], 200, "lost"),
        (1, [FIRST, answer([7, 8], "abort")], 401, "lost"),
        (3, [FIRST, answer([7, 8], "abort")], 200, "lost"),
        (3, [FIRST, answer([7, 8, 9])], 200, "late"),
    ],
)
def test_an_abort_ends_a_stream_or_comes_too_late(after: int, events: list[Any], abort: int, verdict: str) -> None:
    asked = operation("aborted", more={"stream": True, "rid": "r"}, ending="gone", after=after, aborts=True)
    assert of(asked, stream(*events), abort).verdict == verdict


def test_a_client_goes_when_it_was_to() -> None:
    asked = operation("disconnected", more={"stream": True}, ending="gone", after=1)
    assert of(asked, stream(FIRST, answer([7, 8], None))).verdict == "gone"
    early = operation("disconnected", more={"stream": True}, ending="gone", after=4)
    assert of(early, stream(FIRST, answer([7, 8, 9]))).verdict == "late"
    assert of(early, stream(FIRST, answer([7, 8], "abort"))).verdict == "lost"


def test_what_is_left_is_waited_for() -> None:
    """All ranks' requests and tokens, as often as asked until there is none."""
    ranks = [
        {"num_running_reqs": n, "num_waiting_reqs": 1 if n else 0, "num_used_tokens": 10 * n, "num_total_tokens": 99}
        for n in (2, 0)
    ]
    answers = [[ranks[0], ranks[0]], [ranks[0], ranks[1]], [ranks[1], ranks[1]]]

    async def left(seconds: float, count: Any) -> tuple[int, int]:
        asked = iter([*answers, *[answers[-1]] * 3] if seconds else answers)

        def serve(_request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, json={"loads": next(asked)})

        async with httpx.AsyncClient(transport=httpx.MockTransport(serve), base_url="http://server") as client:
            return await left_after(seconds, count, client), len(list(asked))

    assert asyncio.run(left(60, used_tokens)) == (0, 3)
    assert asyncio.run(left(60, held_requests)) == (0, 3)
    assert asyncio.run(left(0, used_tokens)) == (40, 2)
    assert asyncio.run(left(0, held_requests)) == (6, 2)
