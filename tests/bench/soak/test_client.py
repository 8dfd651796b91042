"""What a client makes of what it is told: an answer that is not what was asked for is lost, however it comes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from bench.soak.client import HELD, USED, Outcome, left_after, perform
from bench.soak.traffic import Operation, encoded

ASKED: dict[str, Any] = {"input_ids": [1, 2], "sampling_params": {"max_new_tokens": 3, "ignore_eos": True}}


def operation(more: dict[str, Any] | None = None, **other: Any) -> Operation:
    return Operation(5, "plain", encoded(ASKED | (more or {})), **other)


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


PLAIN = operation()
GRAMMAR = operation({"sampling_params": {"max_new_tokens": 3, "ignore_eos": False, "regex": "[0-9]{3}"}})
SEVERAL = operation(answers=2)


@pytest.mark.parametrize(
    ("asked", "found", "verdict"),
    [
        (PLAIN, answer([7, 8, 9], retractions=2), "answered"),
        (PLAIN, answer([7, 8]), "lost"),
        (PLAIN, answer([]), "lost"),
        (PLAIN, answer([7, 8, 9, 10]), "lost"),
        (PLAIN, answer([7, 8, 9], "abort"), "lost"),
        (PLAIN, answer([7, 8, 9], None), "lost"),
        (PLAIN, answer([7], "stop"), "lost"),
        (PLAIN, {"text": "of another server"}, "lost"),
        (GRAMMAR, answer([7, 8], "stop", text="123", retractions=2), "answered"),
        (GRAMMAR, answer([7, 8], "stop", text="12x"), "lost"),
        (GRAMMAR, answer([7, 8, 9], "length", text="12", retractions=2), "answered"),
        (GRAMMAR, answer([7, 8], "length", text="12"), "lost"),
        (SEVERAL, [answer([7, 8, 9], retractions=1), answer([4, 5, 6], retractions=1)], "answered"),
        (SEVERAL, [answer([7, 8, 9])], "lost"),
        (SEVERAL, [answer([7, 8, 9]), answer([7])], "lost"),
    ],
)
def test_an_answer_is_what_it_was_to_be(asked: Operation, found: Any, verdict: str) -> None:
    outcome = of(asked, httpx.Response(200, json=found))
    first = found[0] if isinstance(found, list) else found
    expected = ("answered", first.get("output_ids"), 2, False) if verdict == "answered" else ("lost", None, 0, True)
    assert (outcome.verdict, outcome.tokens, outcome.retractions, bool(outcome.detail)) == expected


@pytest.mark.parametrize(("status", "verdict"), [(400, "refused"), (422, "refused"), (200, "lost"), (500, "lost")])
def test_only_a_refusal_refuses(status: int, verdict: str) -> None:
    assert of(operation(ending="refusal"), httpx.Response(status, json={})).verdict == verdict
    if status != 200:
        assert of(PLAIN, httpx.Response(status, json=answer([7, 8, 9]))).verdict == "lost"
        assert of(STREAM, httpx.Response(status, json=answer([7, 8, 9]))).verdict == "lost"


STREAM = operation({"stream": True})
ABORTS, ABORTS_LATER = (
    operation({"stream": True, "rid": "r"}, ending="gone", after=after, aborts=True) for after in (1, 3)
)
GOES, GOES_LATER = (operation({"stream": True}, ending="gone", after=after) for after in (1, 4))
FIRST, WHOLE, ABORTED = answer([7], None), answer([7, 8, 9]), answer([7, 8], "abort")


@pytest.mark.parametrize(
    ("asked", "events", "verdict"),
    [
        (STREAM, [FIRST, WHOLE], "answered"),
        (STREAM, [FIRST, WHOLE | {"text": "a\u2028b\u2029c\u0085d"}], "answered"),
        (STREAM, [FIRST], "lost"),
        (STREAM, [], "lost"),
        (STREAM, [FIRST, ABORTED], "lost"),
        (STREAM, [FIRST, {"error": "no"}], "lost"),
        (ABORTS, [FIRST, ABORTED], "gone"),
        (ABORTS, [FIRST, WHOLE], "late"),
        (ABORTS, [FIRST, answer([7, 8])], "lost"),
        (ABORTS, [FIRST], "lost"),
        (ABORTS_LATER, [FIRST, ABORTED], "lost"),
        (ABORTS_LATER, [FIRST, WHOLE], "late"),
        (GOES, [FIRST, answer([7, 8], None)], "gone"),
        (GOES_LATER, [FIRST, WHOLE], "late"),
        (GOES_LATER, [FIRST, ABORTED], "lost"),
    ],
)
def test_a_stream_ends_as_it_was_to(asked: Operation, events: list[Any], verdict: str) -> None:
    text = "".join(f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events) + "data: [DONE]\n\n"
    assert of(asked, httpx.Response(200, text=text)).verdict == verdict
    if asked == ABORTS:
        assert of(asked, httpx.Response(200, text=text), abort=401).verdict == "lost"


def test_what_is_left_is_waited_for() -> None:
    """All ranks' requests and tokens, as often as asked until there is none."""
    busy, idle = (
        dict(zip((*HELD, *USED, "num_total_tokens"), of, strict=True)) for of in ((2, 1, 20, 9), (0, 0, 0, 9))
    )

    async def left(seconds: float, loads: tuple[str, ...]) -> tuple[int, int]:
        answers = iter([[busy, busy], [busy, idle], [idle, idle], [idle, idle]])
        transport = httpx.MockTransport(lambda _request: httpx.Response(200, json={"loads": next(answers)}))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await left_after(client, seconds, loads), len(list(answers))

    assert [asyncio.run(left(60, loads)) for loads in (USED, HELD)] == [(0, 1), (0, 1)]
    assert [asyncio.run(left(0, loads)) for loads in (USED, HELD)] == [(40, 3), (6, 3)]
