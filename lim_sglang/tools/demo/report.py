"""What the demo shows: each turn's figures, agreement with dense attention, and tokens attended by layer role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Column, Table

from lim_sglang.metrics import first_draft_acceptance
from lim_sglang.tools.common import CommandError
from lim_sglang.tools.servers.state import ROLES, accepted_per_round


@dataclass(frozen=True)
class Turn:
    """One answer of the `lim` server. `exact` tells whether the ids are the server's own or made from the text."""

    prompt_ids: list[int]
    output_ids: list[int]
    cached_tokens: int
    decode_seconds: float
    text: str
    exact: bool = True

    @property
    def tokens_per_second(self) -> float:
        """Decode speed: the first token belongs to the prefill."""
        return (len(self.output_ids) - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0


def count_agreement(response: Mapping[str, Any], output_ids: Sequence[int]) -> int:
    """Generated tokens that equal the arg-max in a /generate answer that starts one token before them."""
    meta = response["meta_info"]
    given = [entry[1] for entry in meta["input_token_logprobs"]][1:]
    best = [entries[0][1] if entries else None for entries in meta["input_top_logprobs"]][1:]
    if given != list(output_ids) or len(best) != len(given):
        raise CommandError(f"the dense server scored {len(given)} tokens, not the {len(output_ids)} generated")
    return sum(one == other for one, other in zip(given, best, strict=True))


def turn_rows(turns: Sequence[Turn], agreed: Sequence[int]) -> list[tuple[str, ...]]:
    """One row per turn: number, prompt, cached, generated, tokens per second, agreement."""
    return [
        (
            str(number),
            f"{len(turn.prompt_ids):,}",
            f"{turn.cached_tokens:,}",
            f"{len(turn.output_ids):,}",
            f"{turn.tokens_per_second:.1f}",
            f"{'' if turn.exact else '~'}{same}/{len(turn.output_ids)} ({same / max(1, len(turn.output_ids)):.0%})",
        )
        for number, (turn, same) in enumerate(zip(turns, agreed, strict=True), 1)
    ]


def role_rows(plan: Mapping[str, Any], counted: Mapping[str, Mapping[str, int]]) -> list[tuple[str, ...]]:
    """One row per layer role and their sum: name, layers, tokens attended, what dense reads, the share."""
    attended, context = counted["attended"], counted["context"]
    numbers = [(role.upper(), plan[role], attended[role], context[role]) for role in ROLES]
    total = ("all", sum(plan[r] for r in ROLES), sum(attended[r] for r in ROLES), sum(context[r] for r in ROLES))
    return [
        (name, str(layers), f"{read:,}", f"{full:,}", f"{read / full:.1%}" if full else "-")
        for name, layers, read, full in [*numbers, total]
    ]


def drafts_line(rounds: Mapping[str, int]) -> str:
    """What became of the lossless mode's drafts."""
    accepted, drafted, mean = rounds["accepted_tokens"], rounds["drafted_tokens"], accepted_per_round(rounds)
    first = first_draft_acceptance(rounds)
    per_round = "no round" if mean is None else f"{mean:.2f} per round, first_draft_acceptance {first:.1%}"
    return f"Drafts by lim, verified by dense attention: {accepted:,} of {drafted:,} accepted, {per_round}"


def _table(first: str, *numbers: str) -> Table:
    return Table(first, *(Column(heading, justify="right") for heading in numbers))


def turn_table(turns: Sequence[Turn], agreed: Sequence[int]) -> Table:
    table = _table("turn", "prompt", "cached", "generated", "tokens/s", "agrees with dense")
    for row in turn_rows(turns, agreed):
        table.add_row(*row)
    return table


def role_table(rows: Sequence[tuple[str, ...]]) -> Table:
    table = _table("layer role", "layers", "attended", "dense reads", "share")
    for row in rows:
        table.add_row(*row, end_section=row is rows[-2])
    return table
