"""What clients of a soak do: made by a seed and a number, so that each operation can be made again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Ending = Literal["answer", "refusal", "gone"]
VOCABULARY = range(1000, 40_000)  # tokens of every vocabulary, special ones left out
PREFIXES = 6
ADAPTED = 0.25  # share of the requests that use the adapter, if there is one


@dataclass(frozen=True)
class Limits:
    """Of the server that is asked.

    Attributes:
        prompt: tokens of a prompt, at most.
        output: tokens of an answer, at most.
        context: tokens that the server takes at all.
        adapter: name of a LoRA adapter that some requests use; empty if it has none.
    """

    prompt: int
    output: int
    context: int
    adapter: str = ""


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
    ending: Ending = "answer"
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
    _prefixes: list[list[int]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        draw = random.Random(f"{self.seed}: prefixes")
        self._prefixes.extend(tokens(draw, self.limits.prompt // 2) for _ in range(PREFIXES))

    def operation(self, number: int) -> Operation:
        """The ``number``-th, whatever came before."""
        draw = random.Random(f"{self.seed}: {number}")
        kinds = list(KINDS)
        kind = draw.choices(kinds, [KINDS[kind][0] for kind in kinds])[0]
        return KINDS[kind][1](self, draw, number, kind)

    def prompt(self, draw: random.Random) -> list[int]:
        """Of random length, some of them very short, half of them behind a prefix that others share."""
        shared = draw.choice(self._prefixes) if draw.random() < 0.5 else []
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


Make = Callable[[Maker, random.Random, int, str], Operation]


def plain(maker: Maker, draw: random.Random, number: int, kind: str) -> Operation:
    return Operation(number, kind, encoded(maker.request(draw)), compared=True)


def streamed(maker: Maker, draw: random.Random, number: int, kind: str) -> Operation:
    return Operation(number, kind, encoded(maker.request(draw) | {"stream": True}), compared=True)


def log_probabilities(maker: Maker, draw: random.Random, number: int, kind: str) -> Operation:
    more = {"return_logprob": True, "top_logprobs_num": draw.randint(0, 3)}
    return Operation(number, kind, encoded(maker.request(draw) | more), compared=True)


def several(maker: Maker, draw: random.Random, number: int, kind: str) -> Operation:
    count = draw.randint(2, 4)
    body = maker.request(draw, n=count, temperature=draw.choice([0, 0.8]))
    return Operation(number, kind, encoded(body), answers=count)


def sampled(maker: Maker, draw: random.Random, number: int, kind: str) -> Operation:
    options = {"temperature": draw.uniform(0.3, 1.5), "top_p": draw.choice([0.9, 1.0]), "top_k": draw.choice([20, -1])}
    penalties: dict[str, Any] = draw.choice([{}, {"frequency_penalty": 0.5}, {"repetition_penalty": 1.1}])
    return Operation(number, kind, encoded(maker.request(draw, **options, **penalties)))


def grammar(maker: Maker, draw: random.Random, number: int, kind: str) -> Operation:
    pattern = draw.choice([r"[0-9]{3,8}", r"(yes|no|maybe)", r"[a-z]{2,6} [a-z]{2,6}\."])
    return Operation(number, kind, encoded(maker.request(draw, regex=pattern, ignore_eos=False)), compared=True)


def aborted(maker: Maker, draw: random.Random, number: int, kind: str) -> Operation:
    # SGLang aborts every request whose rid begins with the given one: the dot ends it.
    body = maker.request(draw, max_new_tokens=maker.limits.output) | {"stream": True, "rid": f"soak-{number}."}
    return Operation(number, kind, encoded(body), "gone", draw.randint(1, 4), aborts=True)


def disconnected(maker: Maker, draw: random.Random, number: int, kind: str) -> Operation:
    body = maker.request(draw, max_new_tokens=maker.limits.output) | {"stream": True}
    return Operation(number, kind, encoded(body), "gone", draw.randint(0, 4))


def oversized(maker: Maker, draw: random.Random, number: int, kind: str) -> Operation:
    body = maker.request(draw) | {"input_ids": tokens(draw, maker.limits.context + draw.randint(1, 500))}
    return Operation(number, kind, encoded(body), "refusal")


def malformed(maker: Maker, draw: random.Random, number: int, kind: str) -> Operation:
    whole = encoded(maker.request(draw))
    return Operation(number, kind, whole[: draw.randrange(1, len(whole))], "refusal")


def wrong_types(maker: Maker, draw: random.Random, number: int, kind: str) -> Operation:
    body = maker.request(draw)
    wrong: Sequence[dict[str, Any]] = (
        {"input_ids": "not tokens"},
        {"input_ids": [1.5, 2.5]},
        {"sampling_params": "greedy"},
        {"sampling_params": {"max_new_tokens": -5}},
        {"sampling_params": {"temperature": -1}},
        {"sampling_params": {"top_p": 7}},
    )
    return Operation(number, kind, encoded(body | draw.choice(wrong)), "refusal")


KINDS: dict[str, tuple[int, Make]] = {
    "plain": (30, plain),
    "streamed": (14, streamed),
    "log-probabilities": (8, log_probabilities),
    "several answers": (6, several),
    "sampled": (10, sampled),
    "grammar": (6, grammar),
    "aborted": (6, aborted),
    "disconnected": (8, disconnected),
    "oversized": (3, oversized),
    "malformed": (4, malformed),
    "wrong types": (5, wrong_types),
}
"""By name: how often of 100, and how it is made."""
