"""The runner's figures, files and table, from rows made by hand."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.programs import results
from bench.programs.common import Outcome
from bench.programs.results import Counted

from ...lim_sglang.recorded_state import LIM_AFTER, LIM_BEFORE
from .metered_request import request


def test_attended_share_takes_all_roles_together() -> None:
    assert results.counted_between(LIM_BEFORE, LIM_AFTER) == Counted(attended_share=293_120 / 1_200_000)
    assert results.counted_between(LIM_BEFORE, LIM_BEFORE) == Counted()
    assert results.counted_between(None, LIM_AFTER) == results.counted_between(LIM_BEFORE, None) == Counted()


def test_the_lossless_mode_counts_accepted_drafts() -> None:
    before, after = (with_rounds(LIM_AFTER, rounds, accepted) for rounds, accepted in ((3, 7), (13, 42)))
    assert results.counted_between(before, after) == Counted(accepted_drafts=3.5)
    assert results.counted_between(before, before) == Counted()


def with_rounds(state: dict[str, Any], rounds: int, accepted: int) -> dict[str, Any]:
    totals = {"verify_steps": rounds, "request_rounds": rounds, "accepted_tokens": accepted}
    return state | {"counters": state["counters"] | {"lossless": totals}}


def rows() -> list[results.Row]:
    requests = [request(1, 3, 5), request(None, 4, 0, prompt=90, cached=46)]
    dense, lim = (Outcome(answer, [["abcd"], [text]], "", {}) for answer, text in (("7", "efgh"), ("8", "efXh")))
    return [
        results.make_row(("chain", "dense", 0), requests, 2.5, Counted(), dense),
        results.compared(results.make_row(("chain", "lim", 0), requests, 3.5, Counted(0.25), lim), lim, dense),
        results.make_row(("chain", "lossless", 0), requests, 2.0, Counted(accepted_drafts=3.25), dense),
        results.make_row(("documents", "lim", 0), [], 1.0, Counted(), "the server refused: too long, much"),
    ]


def test_files_hold_every_row(tmp_path: Path) -> None:
    results.write(tmp_path / "new" / "folder", rows(), {"about": {"gpu": "none"}})
    with (tmp_path / "new" / "folder" / results.CSV).open() as file:
        dense, lim, lossless, failed = csv.DictReader(file)
    assert (dense["prompt_tokens"], dense["cached_tokens"], dense["generated_tokens"]) == ("100", "50", "5")
    assert (dense["agreement"], dense["same_answer"], dense["decode_tokens_per_s"]) == ("", "", "2.0")
    assert (lim["agreement"], lim["same_answer"], lim["attended_share"]) == ("0.75", "False", "0.25")
    assert (lossless["accepted_drafts"], lossless["attended_share"]) == ("3.25", "")
    assert (failed["status"], failed["reason"]) == ("failed", "the server refused: too long, much")
    stored = json.loads((tmp_path / "new" / "folder" / results.JSON).read_text())
    assert stored["about"] == {"gpu": "none"}
    assert [row["answer"] for row in stored["rows"]] == ["7", "8", "7", ""]


def test_the_table_sums_repeats_and_names_failures() -> None:
    again = [replace(rows()[1], repeat=1, agreement=0.25, same_answer=True, attended_share=0.75)]
    console = Console(width=140)
    with console.capture() as captured:
        console.print(results.table([*rows(), *again]))
    lines = {tuple(line.split("│")[1:3]): line.split("│")[3:] for line in captured.get().splitlines() if "│" in line}
    cells = {tuple(part.strip() for part in key): [cell.strip() for cell in line] for key, line in lines.items()}
    assert cells["chain", "dense"][:9] == ["5", "100", "50%", "2.5", "2.0", "-", "-", "-", "-"]
    assert cells["chain", "lim"][:9] == ["10", "200", "50%", "7.0", "2.0", "50.0%", "-", "50%", "1/2"]
    assert cells["chain", "lossless"][5:7] == ["-", "3.25"]
    assert cells["documents", "lim"][0] == "failed"
