"""The runner's figures and table, from rows made by hand, and agreement with the dense run of the same problem."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from bench.programs import results
from bench.programs.common import Outcome
from bench.programs.metering import Request, cost
from bench.programs.results import agreement

from ...lim_sglang.recorded_state import LIM_AFTER, LIM_BEFORE

NOTHING = {"attended_share": None, "accepted_drafts": None}


def test_attended_share_takes_all_roles_together() -> None:
    assert results.counted_between(LIM_BEFORE, LIM_AFTER) == NOTHING | {"attended_share": 293_120 / 1_200_000}
    assert results.counted_between(LIM_BEFORE, LIM_BEFORE) == NOTHING
    assert results.counted_between(None, LIM_AFTER) == results.counted_between(LIM_BEFORE, None) == NOTHING


def test_the_lossless_mode_counts_accepted_drafts() -> None:
    before, after = (with_rounds(rounds, accepted) for rounds, accepted in ((3, 7), (13, 42)))
    assert results.counted_between(before, after) == NOTHING | {"accepted_drafts": 3.5}
    assert results.counted_between(before, before) == NOTHING


def with_rounds(rounds: int, accepted: int) -> dict[str, Any]:
    totals = {"request_rounds": rounds, "accepted_tokens": accepted}
    return LIM_AFTER | {"counters": LIM_AFTER["counters"] | {"lossless": totals}}


def test_rows_and_the_table_that_sums_their_repeats() -> None:
    spent = cost([Request("generate", 10, 4, 5, 1, 3), Request("prefix", 90, 46, 0, None, 4)], 3.5)
    dense, lim = (Outcome(answer, [["abcd"], [text]], "", {}) for answer, text in (("7", "efgh"), ("8", "efXh")))
    drafts = NOTHING | {"accepted_drafts": 3.25}
    rows = [
        results.make_row(("chain", "dense", 0), spent, NOTHING, dense),
        results.make_row(("chain", "lim", 0), spent, NOTHING | {"attended_share": 0.25}, lim, dense),
        results.make_row(("chain", "lim", 1), spent, NOTHING | {"attended_share": 0.75}, dense, dense),
        results.make_row(("chain", "lossless", 0), spent, drafts, dense),
        results.make_row(("documents", "lim", 0), cost([], 1.0), NOTHING, "the server refused: too long"),
    ]
    columns = ("status", "reason", "attended_share", "agreement", "same_answer", "answer")
    assert [rows[1][column] for column in columns] == ["ok", "", 0.25, 0.75, False, "8"]
    assert [rows[4][column] for column in columns[:2]] == ["failed", "the server refused: too long"]
    assert all(row.keys() == rows[0].keys() for row in rows)
    console = Console(width=140)
    with console.capture() as captured:
        console.print(results.table(rows))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in captured.get().splitlines() if "│" in line]
    assert lines == [
        ["chain", "dense", "5", "100", "50%", "3.5", "2.0", "-", "-", "-", "-"],
        ["chain", "lim", "10", "200", "50%", "7.0", "2.0", "50.0%", "-", "88%", "1/2"],
        ["chain", "lossless", "5", "100", "50%", "3.5", "2.0", "-", "3.25", "-", "-"],
        ["documents", "lim", "failed", *[""] * 8],
    ]


def test_agreement_is_the_share_before_the_first_difference_of_a_chain() -> None:
    assert agreement([["abcd", "efgh"]], [["abcd", "efgh"]]) == agreement([], []) == 1.0
    assert agreement([["abcd", "efgh"]], [["abcd", "efXh"]]) == 6 / 8
    assert agreement([["abcd", "efgh"]], [["Xbcd", "efgh"]]) == 0.0, "what follows a difference does not count"
    assert agreement([["abcd"], ["efgh"]], [["Xbcd"], ["efgh"]]) == 0.5, "chains are independent"
    assert agreement([["ab", "ef"]], [["abcd", "ef"]]) == 2 / 6, "a text that ends earlier ends the agreement"
    assert agreement([["ab"], ["cd"]], [["ab"]]) == agreement([["ab"]], [["ab", "cd"]]) == 0.5
