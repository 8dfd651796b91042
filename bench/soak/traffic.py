"""What clients of a soak do: made by a seed and a number, so that each operation can be made again."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

VOCABULARY = range(1000, 40_000)  # tokens of every vocabulary, special ones left out
PREFIXES = 6
ADAPTED = 0.25  # share of the requests that use the adapter, if there is one
KINDS = {  # how often of 100
    "plain": 30,
    "streamed": 14,
    "log-probabilities": 8,
    "several answers": 6,
    "sampled": 10,
    "grammar": 6,
    "aborted": 6,
    "disconnected": 8,
    "oversized": 3,
    "malformed": 4,
    "wrong types": 5,
}
COMPARED = ("plain", "streamed", "log-probabilities", "grammar")
REFUSED = ("oversized", "malformed", "wrong types")
WRONG_TYPES: Sequence[dict[str, Any]] = (
    {"input_ids": "not tokens"},
    {"input_ids": [1.5, 2.5]},
    {"sampling_params": "greedy"},
    {"sampling_params": {"max_new_tokens": -5}},
    {"sampling_params": {"temperature": -1}},
    {"sampling_params": {"top_p": 7}},
)


@dataclass(frozen=True)
class Limits:
    """Of the server that is asked, in tokens, at most."""

    prompt: int
    output: int
    context: int  # that it takes at all
    adapter: str = ""  # name of a LoRA adapter that some requests use; empty if it has none


@dataclass(frozen=True)
class Operation:
    """One thing that a client does.

    Attributes:
        number: with the seed, how it is made again.
        kind: a name of ``KINDS``.
        content: the request's body.
        ending: what must come of it: an answer, a refusal (status 4xx), or the client goes before either.
        after: events of a stream that the client reads before it goes, or aborts; None to the end.
        aborts: whether it asks the server to abort, in place of closing the connection.
        answers: outputs that the request asks for.
        compared: whether the answer's tokens are those of the same request alone.
    """

    number: int
    kind: str
    content: bytes
    ending: Literal["answer", "refusal", "gone"] = "answer"
    after: int | None = None
    aborts: bool = False
    answers: int = 1
    compared: bool = False

    @property
    def body(self) -> dict[str, Any]:
        """The request, where it is one."""
        parsed: dict[str, Any] = json.loads(self.content)
        return parsed


@dataclass(frozen=True)
class Maker:
    """Makes the operations of a seed."""

    seed: int
    limits: Limits

    @cached_property
    def prefixes(self) -> list[list[int]]:
        draw = random.Random(f"{self.seed}: prefixes")
        return [tokens(draw, self.limits.prompt // 2) for _ in range(PREFIXES)]

    def operation(self, number: int) -> Operation:
        """The ``number``-th, whatever came before."""
        draw = random.Random(f"{self.seed}: {number}")
        kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
        if kind in REFUSED:
            return Operation(number, kind, self.refused(draw, kind), "refusal")
        if kind in ("aborted", "disconnected"):
            aborts = kind == "aborted"
            # SGLang aborts every request whose rid begins with the given one: the dot ends it.
            more = {"stream": True} | ({"rid": f"soak-{number}."} if aborts else {})
            body = self.request(draw, max_new_tokens=self.limits.output) | more
            return Operation(number, kind, encoded(body), "gone", draw.randint(int(aborts), 4), aborts)
        body = self.answered(draw, kind)
        answers = body["sampling_params"].get("n", 1)
        return Operation(number, kind, encoded(body), answers=answers, compared=kind in COMPARED)

    def answered(self, draw: random.Random, kind: str) -> dict[str, Any]:
        """A request whose client stays to the end."""
        if kind == "several answers":
            return self.request(draw, n=draw.randint(2, 4), temperature=draw.choice([0, 0.8]))
        if kind == "sampled":
            options = {"temperature": draw.uniform(0.3, 1.5), "top_p": draw.choice([0.9, 1.0])}
            options |= {"top_k": draw.choice([20, -1])}
            penalties: Sequence[dict[str, Any]] = ({}, {"frequency_penalty": 0.5}, {"repetition_penalty": 1.1})
            return self.request(draw, **options | draw.choice(penalties))
        if kind == "grammar":
            patterns = (r"[0-9]{3,8}", r"(yes|no|maybe)", r"[a-z]{2,6} [a-z]{2,6}\.")
            return self.request(draw, regex=draw.choice(patterns), ignore_eos=False)
        more: dict[str, Any] = {"stream": True} if kind == "streamed" else {}
        if kind == "log-probabilities":
            more = {"return_logprob": True, "top_logprobs_num": draw.randint(0, 3)}
        return self.request(draw) | more

    def refused(self, draw: random.Random, kind: str) -> bytes:
        """The body of a request that no server can take."""
        body = self.request(draw)
        if kind == "malformed":
            return encoded(body)[: draw.randrange(1, len(encoded(body)))]
        if kind == "oversized":
            return encoded(body | {"input_ids": tokens(draw, self.limits.context + draw.randint(1, 500))})
        return encoded(body | draw.choice(WRONG_TYPES))

    def prompt(self, draw: random.Random) -> list[int]:
        """Of random length, some of them very short, half of them behind a prefix that others share."""
        shared = draw.choice(self.prefixes) if draw.random() < 0.5 else []
        length = draw.choice([draw.randint(1, 8), draw.randint(1, self.limits.prompt - len(shared))])
        return [*shared[: draw.randint(1, len(shared))], *tokens(draw, length)] if shared else tokens(draw, length)

    def request(self, draw: random.Random, **sampling: Any) -> dict[str, Any]:
        """Greedy to a random length, if ``sampling`` does not say otherwise."""
        length = draw.randint(1, self.limits.output)
        defaults = {"temperature": 0, "ignore_eos": True, "max_new_tokens": length}
        body = {"input_ids": self.prompt(draw), "sampling_params": defaults | sampling}
        adapted = self.limits.adapter and draw.random() < ADAPTED
        return body | {"lora_path": self.limits.adapter} if adapted else body


def tokens(draw: random.Random, count: int) -> list[int]:
    return draw.choices(VOCABULARY, k=count)


def encoded(body: Any) -> bytes:
    return json.dumps(body).encode()
