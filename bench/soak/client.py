"""One operation against a server, and what came of it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from bench.soak.traffic import Operation
from lim_sglang.errors import one_line

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Outcome:
    """What a client saw.

    Attributes:
        verdict: ``answered``, ``refused`` or ``gone``, as the operation was to end; ``late`` where the answer was whole
            before the client went; ``lost`` where it ended otherwise.
        status: of HTTP; None where there was none.
        tokens: of the first answer.
        retractions: how often the server put the request back, all of its answers together.
        detail: why it is lost.
    """

    number: int
    kind: str
    verdict: str
    status: int | None = None
    tokens: list[int] | None = None
    retractions: int = 0
    seconds: float = 0.0
    detail: str = ""


async def perform(client: httpx.AsyncClient, operation: Operation) -> Outcome:
    """Do it; never raises for what the server or the network does."""
    began = time.perf_counter()
    try:
        streams = operation.ending != "refusal" and operation.body.get("stream")
        found = await (_stream if streams else _ask)(client, operation)
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        found = {"verdict": "lost", "detail": f"{type(error).__name__}: {one_line(str(error))}"[:300]}
    seconds = round(time.perf_counter() - began, 3)
    return Outcome(operation.number, operation.kind, seconds=seconds, **found)


async def _ask(client: httpx.AsyncClient, operation: Operation) -> dict[str, Any]:
    response = await client.post("/generate", content=operation.content, headers=JSON)
    status = response.status_code
    if operation.ending == "refusal":
        refused = 400 <= status < 500
        return _found(status, "refused" if refused else "lost", f"expected a refusal, got {response.text[:200]}")
    if status != 200:
        return _found(status, "lost", response.text[:200])
    parsed = response.json()
    answers = parsed if isinstance(parsed, list) else [parsed]
    if len(answers) != operation.answers:
        return _found(status, "lost", f"{len(answers)} answers, expected {operation.answers}")
    return _answered(status, answers, operation)


async def _stream(client: httpx.AsyncClient, operation: Operation) -> dict[str, Any]:
    events, last = 0, None
    async with client.stream("POST", "/generate", content=operation.content, headers=JSON) as response:
        if response.status_code != 200:
            return _found(response.status_code, "lost", (await response.aread()).decode(errors="replace")[:200])
        if operation.after == 0:
            return _found(response.status_code, "gone")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            last, events = json.loads(line.removeprefix("data: ")), events + 1
            if "error" in last:
                return _found(response.status_code, "lost", str(last["error"])[:200])
            if operation.after == events:
                if operation.aborts:
                    await _abort(client, operation.body["rid"])
                    continue
                return _found(response.status_code, "gone")
    if last is None:
        return _found(response.status_code, "lost", "the stream ended without an event")
    aborted = operation.aborts and events >= (operation.after or 0)
    if aborted and _reason(last) == "abort":
        return _found(response.status_code, "gone")
    found = _answered(response.status_code, [last], operation)
    return found | {"verdict": "late"} if operation.ending == "gone" and found["verdict"] == "answered" else found


async def _abort(client: httpx.AsyncClient, rid: str) -> None:
    (await client.post("/abort_request", json={"rid": rid})).raise_for_status()


def _answered(status: int, answers: Sequence[dict[str, Any]], operation: Operation) -> dict[str, Any]:
    """The first of the answers, if all are what was asked for."""
    for fault in (_fault(answer, operation.body["sampling_params"]) for answer in answers):
        if fault:
            return _found(status, "lost", fault)
    retractions = sum(answer["meta_info"].get("num_retractions", 0) for answer in answers)
    return _found(status, "answered") | {"tokens": answers[0]["output_ids"], "retractions": retractions}


def _fault(answer: dict[str, Any], asked: dict[str, Any]) -> str:
    """What is wrong with its end, its length or its text; empty if nothing is."""
    tokens, most, reason = answer["output_ids"], asked["max_new_tokens"], _reason(answer)
    if reason not in ("length", "stop") or not 0 < len(tokens) <= most:
        return f"{len(tokens)} tokens of {most}: {answer['meta_info'].get('finish_reason')}"
    if len(tokens) < most and (reason == "length" or (asked["ignore_eos"] and "regex" not in asked)):
        return f"{len(tokens)} tokens of {most}: {reason}"
    if reason == "stop" and "regex" in asked and not re.fullmatch(asked["regex"], answer["text"]):
        return f"{answer['text']!r} is not of {asked['regex']}"
    return ""


def _reason(answer: dict[str, Any]) -> str | None:
    """Why it ended; None where it has not."""
    return (answer["meta_info"].get("finish_reason") or {}).get("type")


def _found(status: int, verdict: str, detail: str = "") -> dict[str, Any]:
    return {"status": status, "verdict": verdict, "detail": detail if verdict == "lost" else ""}


async def left_after(
    seconds: float, count: Callable[[httpx.AsyncClient], Awaitable[int]], client: httpx.AsyncClient
) -> int:
    """What ``count`` finds after ``seconds`` without new requests, 0 as soon as it finds none."""
    deadline = time.monotonic() + seconds
    while found := await count(client):
        if time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.25)
    return 0


async def loads(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    """What SGLang says of every rank's load."""
    found: list[dict[str, Any]] = (await client.get("/v1/loads")).raise_for_status().json()["loads"]
    return found


async def held_requests(client: httpx.AsyncClient) -> int:
    """Running and waiting."""
    return sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in await loads(client))


async def used_tokens(client: httpx.AsyncClient) -> int:
    """Of the pool, without what the radix cache may evict: of an idle server, those that have leaked."""
    return sum(load["num_used_tokens"] for load in await loads(client))
