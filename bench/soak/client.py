"""One operation against a server, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
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
        verdict: ``answered``, ``refused`` or ``gone``, as the operation was to end; ``lost`` where it did not.
        status: of HTTP; None where there was none.
        tokens: of the first answer.
        retractions: how often the server put the request back.
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
    return _answered(status, answers[0], operation)


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
    if operation.ending == "gone":  # it was aborted, or came to its end before the client went
        return _found(response.status_code, "gone")
    return _answered(response.status_code, last, operation)


async def _abort(client: httpx.AsyncClient, rid: str) -> None:
    with contextlib.suppress(httpx.HTTPError):
        await client.post("/abort_request", json={"rid": rid})


def _answered(status: int, answer: dict[str, Any], operation: Operation) -> dict[str, Any]:
    """The answer, if it is as long as it says it is."""
    meta, tokens = answer["meta_info"], answer["output_ids"]
    asked = operation.body["sampling_params"]
    if not tokens or len(tokens) > asked["max_new_tokens"]:
        return _found(status, "lost", f"{len(tokens)} tokens, asked for {asked['max_new_tokens']}")
    if asked["ignore_eos"] and "regex" not in asked and len(tokens) != asked["max_new_tokens"]:
        return _found(status, "lost", f"{len(tokens)} tokens of {asked['max_new_tokens']}: {meta['finish_reason']}")
    return _found(status, "answered") | {"tokens": tokens, "retractions": meta.get("num_retractions", 0)}


def _found(status: int, verdict: str, detail: str = "") -> dict[str, Any]:
    return {"status": status, "verdict": verdict, "detail": detail if verdict == "lost" else ""}


async def wait_idle(client: httpx.AsyncClient, seconds: float) -> int:
    """Requests that the server still holds after ``seconds`` without new ones, 0 as soon as it holds none."""
    deadline = time.monotonic() + seconds
    while held := await held_requests(client):
        if time.monotonic() > deadline:
            return held
        await asyncio.sleep(0.25)
    return 0


async def loads(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    """What SGLang says of every rank's load."""
    found: list[dict[str, Any]] = (await client.get("/v1/loads")).raise_for_status().json()["loads"]
    return found


async def held_requests(client: httpx.AsyncClient) -> int:
    """Running and waiting."""
    return sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in await loads(client))
