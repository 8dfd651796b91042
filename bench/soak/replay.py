"""Answers asked for again, alone: the same tokens, or another one where two were about as likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
from rich.console import Console
from rich.progress import track

from bench.soak.client import JSON, Outcome
from bench.soak.traffic import Maker, encoded

CANDIDATES = 5  # log-probabilities that a replay asks for at each token


@dataclass
class Replayed:
    """How the answers compare.

    Attributes:
        differing: numbers of the operations whose tokens are others.
        near_ties: how many went on differently after a token that was as likely as the replay's within the tolerance.
    """

    asked: int = 0
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
        tolerance: difference of log-probabilities up to which another token is a near-tie; 0 asks for equal tokens.
    """
    kept = [o for o in outcomes if o.tokens and maker.operation(o.number).compared and (retracted or not o.retractions)]
    found = Replayed()
    asked = kept[:: max(1, len(kept) // most)][:most] if most else kept
    for outcome in track(asked, "again", console=Console(stderr=True)):
        operation = maker.operation(outcome.number)
        body = operation.body | {"stream": False, "return_logprob": True, "top_logprobs_num": CANDIDATES}
        response = await client.post("/generate", content=encoded(body), headers=JSON)
        found.asked += 1
        answer = response.json() if response.status_code == 200 else {"output_ids": [], "meta_info": {}}
        tops = answer["meta_info"].get("output_top_logprobs", [])
        gap = likelihood_gap(outcome.tokens or [], answer["output_ids"], tops)
        if gap is None or gap > tolerance:
            found.differing.append(outcome.number)
        elif gap > 0 or answer["output_ids"] != outcome.tokens:
            found.near_ties += 1
    return found


def likelihood_gap(
    tokens: Sequence[int], again: Sequence[int], tops: Sequence[Sequence[Sequence[float]]]
) -> float | None:
    """How much less likely the first token that differs was to the replay, in nats; 0 where none does.

    Args:
        tokens: the answer.
        again: the replay's answer.
        tops: for each token of ``again``, the most likely candidates: log-probability, token, text.

    Returns:
        None where the replay had the token not among its candidates, or the lengths alone differ.
    """
    for position, (one, other) in enumerate(zip(tokens, again, strict=False)):
        if one != other:
            by_token = {int(candidate[1]): candidate[0] for candidate in tops[position]}
            return by_token[other] - by_token[one] if one in by_token and other in by_token else None
    return 0.0 if len(tokens) == len(again) else None
