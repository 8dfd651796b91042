"""One operation against a server, and what came of it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from bench.soak.traffic import Operation
from lim_sglang.errors import one_line
from lim_sglang.tools.servers.events import read_events_async

JSON = {"Content-Type": "application/json"}
GONE = {"verdict": "gone", "status": 200}
HELD = ("num_running_reqs", "num_waiting_reqs")
USED = ("num_used_tokens",)  # of the pool, without what the cache may evict: of an idle server, those that have leaked


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


class Lost(Exception):
    """An answer is not what was asked for; its arguments are the status and the reason."""


async def perform(client: httpx.AsyncClient, operation: Operation) -> Outcome:
    """Do it; never raises for what the server or the network does."""
    began = time.perf_counter()
    try:
        streams = operation.ending != "refusal" and operation.body.get("stream")
        found = await (_stream if streams else _ask)(client, operation)
    except Lost as lost:
        found = {"verdict": "lost", "status": lost.args[0], "detail": lost.args[1][:200]}
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        found = {"verdict": "lost", "detail": f"{type(error).__name__}: {one_line(str(error))}"[:300]}
    return Outcome(operation.number, operation.kind, seconds=round(time.perf_counter() - began, 3), **found)


async def _ask(client: httpx.AsyncClient, operation: Operation) -> dict[str, Any]:
    response = await client.post("/generate", content=operation.content, headers=JSON)
    status = response.status_code
    if operation.ending == "refusal":
        if not 400 <= status < 500:
            raise Lost(status, f"expected a refusal, got {response.text}")
        return {"verdict": "refused", "status": status}
    if status != 200:
        raise Lost(status, response.text)
    parsed = response.json()
    return _answered(parsed if isinstance(parsed, list) else [parsed], operation)


async def _stream(client: httpx.AsyncClient, operation: Operation) -> dict[str, Any]:
    events, last = 0, None
    async with client.stream("POST", "/generate", content=operation.content, headers=JSON) as response:
        if response.status_code != 200:
            raise Lost(response.status_code, (await response.aread()).decode(errors="replace"))
        if operation.after == 0:
            return GONE
        async for event in read_events_async(response.aiter_bytes()):
            last, events = event, events + 1
            if "error" in last:
                raise Lost(200, str(last["error"]))
            if events == operation.after:
                if not operation.aborts:
                    return GONE
                (await client.post("/abort_request", json={"rid": operation.body["rid"]})).raise_for_status()
    if last is None:
        raise Lost(200, "the stream ended without an event")
    if operation.aborts and events >= (operation.after or 0) and _reason(last) == "abort":
        return GONE
    return _answered([last], operation) | ({"verdict": "late"} if operation.ending == "gone" else {})


def _answered(answers: Sequence[dict[str, Any]], operation: Operation) -> dict[str, Any]:
    """The first of the answers, if all are what was asked for."""
    if len(answers) != operation.answers:
        raise Lost(200, f"{len(answers)} answers, expected {operation.answers}")
    for answer in answers:
        _check(answer, operation.body["sampling_params"])
    retractions = sum(answer["meta_info"].get("num_retractions", 0) for answer in answers)
    return {"verdict": "answered", "status": 200, "tokens": answers[0]["output_ids"], "retractions": retractions}


def _check(answer: dict[str, Any], asked: dict[str, Any]) -> None:
    """Its end, its length and its text."""
    count, most, reason = len(answer["output_ids"]), asked["max_new_tokens"], _reason(answer)
    short = count < most and (reason == "length" or (asked["ignore_eos"] and "regex" not in asked))
    if reason not in ("length", "stop") or not 0 < count <= most or short:
        raise Lost(200, f"{count} tokens of {most}: {answer['meta_info'].get('finish_reason')}")
    if reason == "stop" and "regex" in asked and not re.fullmatch(asked["regex"], answer["text"]):
        raise Lost(200, f"{answer['text']!r} is not of {asked['regex']}")


def _reason(answer: dict[str, Any]) -> str | None:
    """Why it ended; None where it has not."""
    return (answer["meta_info"].get("finish_reason") or {}).get("type")


async def left_after(client: httpx.AsyncClient, seconds: float, loads: Sequence[str]) -> int:
    """The sum of ``loads`` over all ranks ``seconds`` after the last request, 0 as soon as it is."""
    deadline = time.monotonic() + seconds
    while True:
        ranks = (await client.get("/v1/loads")).raise_for_status().json()["loads"]
        found: int = sum(rank[load] for rank in ranks for load in loads)
        if not found or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.25)
