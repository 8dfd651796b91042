"""The running server: what it says about itself, and the samples that it is asked for."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
from openai.types.chat import ChatCompletion

from bench.reasoning.data import Problem, ReasoningError
from bench.reasoning.grade import is_correct
from bench.reasoning.latex import extract
from bench.reasoning.results import Sample
from lim_sglang.errors import one_line
from lim_sglang.tools.servers.access import check_access, headers
from lim_sglang.tools.servers.state import NoLimError, lim_part

_FACTS_TIMEOUT = 60.0


class ServerLost(ReasoningError):
    """The server was there and no longer answers."""


@dataclass(frozen=True)
class Server:
    """What a server says about itself.

    Attributes:
        key: what its ``--api-key`` says; None where it wants none.
        max_model_len: tokens of prompt and answer together; None if it does not say.
        info: version and attention backends of ``/server_info``; None where it does not say.
        lim: the state that lim reports (config, plan, counters); None for a server without lim.
    """

    url: str
    model: str
    max_model_len: int | None
    info: dict[str, str | None]
    lim: dict[str, Any] | None
    key: str | None = field(default=None, repr=False)

    def settings(self) -> dict[str, Any]:
        """What has to stay the same while one run is taken up again."""
        lim = self.lim and self.lim["config"] | {"select_layers": self.lim["plan"]["select_layers"]}
        backends = ("attention_backend", "decode_attention_backend")
        return {"model": self.model, **{name: self.info[name] for name in backends}, "lim": lim}


def ask_server(url: str, key: str | None = None) -> Server:
    """Facts from ``/v1/models`` and ``/server_info``.

    Raises:
        ReasoningError: nothing answers, or what answers is no OpenAI-compatible server or wants another ``key``.
    """
    try:
        with httpx.Client(base_url=url, headers=headers(key), timeout=_FACTS_TIMEOUT, trust_env=False) as client:
            models = check_access(client.get("/v1/models"), url, key).raise_for_status().json()
            model = models["data"][0]
            described = client.get("/server_info")
            info = dict(described.json()) if described.is_success else {}  # no SGLang server
            name, longest = str(model["id"]), model.get("max_model_len")
    except (httpx.TransportError, httpx.InvalidURL) as error:
        fix = "start it, or correct --server"
        raise ReasoningError(f"no server answers at {url} ({one_line(str(error))}); fix: {fix}") from error
    except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = one_line(str(error)).split(" For more")[0]
        raise ReasoningError(
            f"{url} answers, but not as an OpenAI-compatible server ({reason}); fix: correct --server"
        ) from error
    lim = None
    with suppress(NoLimError):
        lim = lim_part(info)
    facts = ("version", "attention_backend", "decode_attention_backend")
    return Server(url, name, longest, {fact: info.get(fact) for fact in facts}, lim, key)


def sample_seed(seed: int, problem: str, sample: int) -> int:
    """The seed of one sample, 0 to 2**31 - 1."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{problem}/{sample}".encode()).digest()[:4]) >> 1


async def ask_all(
    server: Server, args: argparse.Namespace, todo: Iterable[tuple[Problem, int]], keep: Callable[[Sample], None]
) -> None:
    """Ask for every (problem, sample number) of ``todo``; ``keep`` is called with each sample as it is finished.

    Args:
        args: the benchmark's flags.

    Raises:
        ServerLost: the server no longer answers; what is finished has been kept.
    """
    left = iter(todo)
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1",
        api_key=server.key or "none",
        timeout=args.request_timeout,
        max_retries=2,
        http_client=httpx.AsyncClient(limits=httpx.Limits(max_connections=None), trust_env=False),
    ) as client:

        async def work() -> None:
            for problem, number in left:
                keep(await ask(client, server, args, problem, number))

        await asyncio.gather(*(work() for _ in range(args.concurrency)))


async def ask(
    client: openai.AsyncOpenAI, server: Server, args: argparse.Namespace, problem: Problem, number: int
) -> Sample:
    """One sample: an answer and its grade, or the error after all attempts."""
    seed = sample_seed(args.seed, problem.id, number)
    started, clock = time.time(), time.monotonic()
    found: dict[str, Any] = {}
    try:
        completion = await client.chat.completions.create(
            model=server.model,
            messages=[{"role": "user", "content": problem.prompt}],
            temperature=args.temperature,
            top_p=args.top_p,
            max_tokens=args.max_tokens,
            seed=seed,
        )
        found = _answered(completion)
    except (openai.OpenAIError, ValueError) as failure:
        if isinstance(failure, openai.APIConnectionError) and not isinstance(failure, openai.APITimeoutError):
            await _check_alive(server, failure)
        found["error"] = one_line(f"{type(failure).__name__}: {failure}")[:500]
    found |= {"started": started, "seconds": time.monotonic() - clock}
    if "text" in found:
        found |= await asyncio.to_thread(_graded, found["text"], problem.expected, args.kind)
    return Sample(problem=problem.id, sample=number, seed=seed, expected=problem.expected, **found)


def _answered(completion: object) -> dict[str, Any]:
    if not isinstance(completion, ChatCompletion) or not completion.choices or completion.usage is None:
        raise ValueError("the answer is no chat completion with its token counts")
    choice, usage = completion.choices[0], completion.usage
    # With a reasoning parser the server tells the reasoning apart; grading must not depend on that.
    reasoning = getattr(choice.message, "reasoning_content", None)
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "finish_reason": choice.finish_reason,
        "text": (f"{reasoning}</think>" if reasoning else "") + (choice.message.content or ""),
    }


def _graded(text: str, expected: str, kind: str) -> dict[str, Any]:
    extracted = extract(text, kind)
    return {"extracted": extracted, "correct": is_correct(extracted, expected, kind)}


async def _check_alive(server: Server, failure: Exception) -> None:
    """Tell one broken connection from the server's end."""
    async with httpx.AsyncClient(timeout=_FACTS_TIMEOUT, trust_env=False) as client:
        try:
            await client.get(f"{server.url}/v1/models")
        except httpx.HTTPError:
            raise ServerLost(
                f"{server.url} no longer answers ({one_line(str(failure))}); fix: start the server again, then the "
                "same command goes on from what is finished"
            ) from failure
