"""Answers asked for again, alone: the same tokens, or another one where two were about as likely."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
from rich.console import Console
from rich.progress import track

from bench.soak.client import Outcome
from bench.soak.traffic import Maker

CANDIDATES = 5  # log-probabilities that a replay asks for at each token


@dataclass
class Replayed:
    """How the answers compare.

    Attributes:
        differing: numbers of the operations whose tokens are others.
        near_ties: how many went on differently after a token that was as likely as the replay's within the tolerance.
        equal_tokens: those before the first that differs, of all answers.
    """

    asked: int = 0
    equal_tokens: int = 0
    near_ties: int = 0
    differing: list[int] = field(default_factory=list)


async def replay(
    client: httpx.AsyncClient,
    maker: Maker,
    outcomes: Sequence[Outcome],
    *,
    most: int | None,
    retracted: bool,
    tolerance: float,
) -> Replayed:
    """Ask again for the answers that can be compared, one at a time.

    Args:
        most: how many, taken evenly; None for all.
        retracted: whether those of retracted requests can be: what lim decoded is prefilled again by dense attention.
        tolerance: difference of log-probabilities up to which another token is a near-tie; 0 asks for equal tokens, or
            exactly as likely ones.
    """
    kept = [o for o in outcomes if o.tokens and maker.operation(o.number).compared and (retracted or not o.retractions)]
    found = Replayed()
    for outcome in track(evenly(kept, most), "again", console=Console(stderr=True)):
        tokens = outcome.tokens or []
        body = maker.operation(outcome.number).body
        body |= {"stream": False, "return_logprob": True, "top_logprobs_num": CANDIDATES}
        response = await client.post("/generate", json=body)
        answer = response.json() if response.status_code == 200 else {"output_ids": [], "meta_info": {}}
        again = answer["output_ids"]
        equal = len(os.path.commonprefix([tokens, again]))
        gap = likelihood_gap(tokens, again, equal, answer["meta_info"].get("output_top_logprobs", []))
        found.asked += 1
        found.equal_tokens += equal
        if gap is None or gap > tolerance:
            found.differing.append(outcome.number)
        elif again != tokens:
            found.near_ties += 1
    return found


def evenly(outcomes: Sequence[Outcome], most: int | None) -> Sequence[Outcome]:
    """At most ``most`` of them, from the first to the last."""
    count = min(most or len(outcomes), len(outcomes))
    return [outcomes[index * len(outcomes) // count] for index in range(count)]


def likelihood_gap(
    tokens: Sequence[int], again: Sequence[int], equal: int, tops: Sequence[Sequence[Sequence[float]]]
) -> float | None:
    """How far the replay found the first two tokens that differ apart, in nats; 0 where none does.

    None where the replay had the token not among its candidates, or the lengths alone differ.

    Args:
        again: the replay's answer, whose first ``equal`` tokens are the same.
        tops: for each token of ``again``, the most likely candidates: log-probability, token, text.
    """
    if equal == min(len(tokens), len(again)):
        return 0.0 if len(tokens) == len(again) else None
    likely = {int(candidate[1]): candidate[0] for candidate in tops[equal]}
    one, other = likely.get(tokens[equal]), likely.get(again[equal])
    return None if one is None or other is None else abs(other - one)
