"""The runner's figures: one row per run of a program, as CSV, JSON and table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from bench import driver
from bench.programs.common import Outcome
from bench.programs.compare import agreement
from bench.programs.metering import Request, decode_seconds, decode_speed
from lim_sglang.tools.servers.state import accepted_per_round, counted_since, rounds_since

CSV, JSON = "programs.csv", "programs.json"


@dataclass(frozen=True)
class Row:
    """One run of one program. What could not be measured is None.

    Attributes:
        prompt_tokens: over all requests, of which ``cached_tokens`` were radix cache hits.
        decode_tokens_per_s: tokens after the first of each request, over ``decode_seconds``.
        attended_share: of the tokens that dense attention would have read in decode, all layers taken together; not
            of the lossless mode, whose output is dense attention's.
        accepted_drafts: of the lossless mode, per request and round.
        agreement: share of the generated characters until the first difference from the dense run, by chain.
        same_answer: whether the answer is the dense run's.
    """

    program: str
    attention: str
    repeat: int
    status: str
    reason: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    wall_seconds: float
    decode_seconds: float
    decode_tokens_per_s: float | None
    attended_share: float | None
    accepted_drafts: float | None
    agreement: float | None
    same_answer: bool | None
    answer: str


@dataclass(frozen=True)
class Counted:
    """What a server counted during a run, as in ``Row``; None where it does not count it."""

    attended_share: float | None = None
    accepted_drafts: float | None = None


def counted_between(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Counted:
    """From the server's two states of lim."""
    if before is None or after is None:
        return Counted()
    if "lossless" in after["counters"]:
        return Counted(accepted_drafts=accepted_per_round(rounds_since(before, after)))
    counted = counted_since(before, after)
    context = sum(counted["context"].values())
    return Counted(attended_share=sum(counted["attended"].values()) / context if context else None)


def make_row(
    place: tuple[str, str, int], requests: Sequence[Request], seconds: float, counted: Counted, result: Outcome | str
) -> Row:
    """The row of a run at ``place`` (program, attention, repeat) that came to an outcome or to a reason to fail."""
    failed = isinstance(result, str)
    return Row(
        *place,
        status="failed" if failed else "ok",
        reason=result if isinstance(result, str) else "",
        requests=len(requests),
        prompt_tokens=sum(request.prompt_tokens for request in requests),
        cached_tokens=sum(request.cached_tokens for request in requests),
        generated_tokens=sum(request.completion_tokens for request in requests),
        wall_seconds=round(seconds, 3),
        decode_seconds=round(decode_seconds(requests), 3),
        decode_tokens_per_s=decode_speed(requests),
        attended_share=counted.attended_share,
        accepted_drafts=counted.accepted_drafts,
        agreement=None,
        same_answer=None,
        answer="" if isinstance(result, str) else result.answer,
    )


def compared(row: Row, outcome: Outcome, dense: Outcome) -> Row:
    return replace(row, agreement=agreement(dense.chains, outcome.chains), same_answer=outcome.answer == dense.answer)


def write(out: Path, rows: Sequence[Row], rest: Mapping[str, Any]) -> None:
    """``programs.csv`` with a line per row; ``programs.json`` with the rows and ``rest``."""
    columns, lines = [field.name for field in fields(Row)], [asdict(row) for row in rows]
    driver.write_rows(out / CSV, columns, lines)
    driver.write_json(out / JSON, rows=lines, **rest)


def table(rows: Sequence[Row]) -> Table:
    """One line per program and attention: sums of tokens and seconds, means of the rest, over its repeats."""
    shown = Table("program", "attention", title="SGLang frontend programs")
    for heading in (
        "generated",
        "prompt",
        "cached",
        "wall s",
        "tokens/s",
        "attended",
        "accepted",
        "agrees",
        "same answer",
    ):
        shown.add_column(heading, justify="right")
    for place in dict.fromkeys((row.program, row.attention) for row in rows):
        group = [row for row in rows if (row.program, row.attention) == place]
        shown.add_row(*place, *_cells(group))
    return shown


def _cells(group: Sequence[Row]) -> list[str]:
    good = [row for row in group if row.status == "ok"]
    if not good:
        return ["failed"]
    prompt = sum(row.prompt_tokens for row in good)
    compared_rows = [row for row in good if row.same_answer is not None]
    return [
        f"{sum(row.generated_tokens for row in good):,}",
        f"{prompt:,}",
        f"{sum(row.cached_tokens for row in good) / max(1, prompt):.0%}",
        f"{sum(row.wall_seconds for row in good):.1f}",
        _mean((row.decode_tokens_per_s for row in good), "{:.1f}"),
        _mean((row.attended_share for row in good), "{:.1%}"),
        _mean((row.accepted_drafts for row in good), "{:.2f}"),
        _mean((row.agreement for row in good), "{:.0%}"),
        f"{sum(bool(row.same_answer) for row in compared_rows)}/{len(compared_rows)}" if compared_rows else "-",
    ]


def _mean(values: Iterable[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return form.format(statistics.fmean(known)) if known else "-"
