"""The runner's figures: one row per run of a program, its agreement with the dense run, and the table of all."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from rich.table import Table

from bench.driver import Row
from bench.programs.common import Outcome
from lim_sglang.tools.servers.state import accepted_per_round, counted_since, rounds_since

PLACE = ("program", "attention", "repeat")
HEADINGS = ("generated", "prompt", "cached", "wall s", "tokens/s", "attended", "accepted", "agrees", "same answer")


def counted_between(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> dict[str, float | None]:
    """What a server counted between two states of lim; None where it does not count it.

    ``attended_share`` is of the tokens that dense attention would have read in decode, all layers taken together; not
    of the lossless mode, whose output is dense attention's. ``accepted_drafts`` of that mode are per request and round.
    """
    share = drafts = None
    if before is not None and after is not None:
        if "lossless" in after["counters"]:
            drafts = accepted_per_round(rounds_since(before, after))
        else:
            attended, context = (sum(roles.values()) for roles in counted_since(before, after).values())
            share = attended / context if context else None
    return {"attended_share": share, "accepted_drafts": drafts}


def make_row(
    place: tuple[str, str, int],
    spent: Mapping[str, Any],
    counted: Mapping[str, Any],
    result: Outcome | str,
    dense: Outcome | None = None,
) -> Row:
    """The row of a run that came to an outcome or to a reason to fail; what could not be measured is None.

    Args:
        place: values of ``PLACE``.
        spent: as of ``metering.cost``.
        counted: as of ``counted_between``.
        dense: what the same problem came to with dense attention, to compare with.
    """
    row: Row = dict(zip(PLACE, place, strict=True))
    row |= {"status": "failed", "reason": result, **spent, **counted}
    row |= {"agreement": None, "same_answer": None, "answer": ""}
    if isinstance(result, Outcome):
        row |= {"status": "ok", "reason": "", "answer": result.answer}
        if dense:
            row |= {"agreement": agreement(dense.chains, result.chains), "same_answer": result.answer == dense.answer}
    return row


def agreement(dense: Sequence[Sequence[str]], other: Sequence[Sequence[str]]) -> float:
    """Share of generated characters before the first difference, over all chains; 1.0 if nothing was generated.

    What follows a difference within a chain had another prompt, so it does not count, even where it is equal. A chain
    or text that only one of the two has counts as different.
    """
    same = total = 0
    for one, two in zip_longest(dense, other, fillvalue=()):
        total += max(sum(map(len, one)), sum(map(len, two)))
        for first, second in zip(one, two, strict=False):
            same += len(os.path.commonprefix([first, second]))
            if first != second:
                break
    return same / total if total else 1.0


def table(rows: Sequence[Row]) -> Table:
    """One line per program and attention: sums of tokens and seconds, means of the rest, over its repeats."""
    shown = Table("program", "attention", title="SGLang frontend programs")
    for heading in HEADINGS:
        shown.add_column(heading, justify="right")
    for place in dict.fromkeys((row["program"], row["attention"]) for row in rows):
        good = [row for row in rows if (row["program"], row["attention"]) == place and row["status"] == "ok"]
        shown.add_row(*place, *(_cells(good) if good else ["failed"]))
    return shown


def _cells(rows: Sequence[Row]) -> list[str]:
    prompt = sum(row["prompt_tokens"] for row in rows)
    same = [row["same_answer"] for row in rows if row["same_answer"] is not None]
    return [
        f"{sum(row['generated_tokens'] for row in rows):,}",
        f"{prompt:,}",
        f"{sum(row['cached_tokens'] for row in rows) / max(1, prompt):.0%}",
        f"{sum(row['wall_seconds'] for row in rows):.1f}",
        _mean(rows, "decode_tokens_per_s", "{:.1f}"),
        _mean(rows, "attended_share", "{:.1%}"),
        _mean(rows, "accepted_drafts", "{:.2f}"),
        _mean(rows, "agreement", "{:.0%}"),
        f"{sum(same)}/{len(same)}" if same else "-",
    ]


def _mean(rows: Sequence[Row], column: str, form: str) -> str:
    known = [row[column] for row in rows if row[column] is not None]
    return form.format(statistics.fmean(known)) if known else "-"
