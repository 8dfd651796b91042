"""A soak's figures, and that a run which was stopped can go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.soak.client import Outcome
from bench.soak.replay import Replayed
from bench.soak.results import Report, Settled, earlier, store, summary

OUTCOMES = [
    Outcome(0, "plain", "answered", 200, [1, 2], retractions=2),
    Outcome(1, "malformed", "refused", 400),
    Outcome(2, "disconnected", "gone", 200),
    Outcome(3, "streamed", "lost", 500, detail="no answer"),
]
CLEAN = {"rss_mib": {"scheduler": 100}, "gpu_mib": 0, "lim": None}


def settled(**other: object) -> Settled:
    values = {"start": CLEAN, "end": CLEAN, "stuck": 0, "leaked": 0, "healthy": True, "seconds": 9.5}
    values["replayed"] = Replayed(1)
    return Settled(**(values | other))  # type: ignore[arg-type]


def test_outcomes_add_up() -> None:
    found = summary(OUTCOMES, settled())
    assert {name: found[name] for name in ("requests", "answered", "aborted", "bad_inputs", "retracted", "lost")} == {
        "requests": 4,
        "answered": 1,
        "aborted": 1,
        "bad_inputs": 1,
        "retracted": 2,
        "lost": 1,
    }
    assert found["wrong"] == ["lost"]
    assert found["examples"] == ["3 (streamed, status 500): no answer"]


@pytest.mark.parametrize(
    ("other", "wrong"),
    [
        ({}, []),
        ({"stuck": 3}, ["stuck"]),
        ({"leaked": 7}, ["leaked_tokens"]),
        ({"replayed": Replayed(2, differing=[5])}, ["differing"]),
        ({"replayed": Replayed(2, near_ties=1)}, []),
        ({"healthy": False}, ["healthy"]),
        ({"end": CLEAN | {"rss_mib": {"scheduler": 900}}}, []),
    ],
)
def test_what_is_wrong_is_named(other: dict[str, object], wrong: list[str]) -> None:
    assert summary(OUTCOMES[:3], settled(**other))["wrong"] == wrong


@pytest.mark.parametrize(
    ("gone", "late", "wrong"), [(3, 3, []), (1, 2, []), (3, 4, ["too_late"]), (0, 3, ["too_late"])]
)
def test_a_server_that_heeds_no_aborts_is_wrong(gone: int, late: int, wrong: list[str]) -> None:
    verdicts = ["gone"] * gone + ["late"] * late
    outcomes = [Outcome(number, "aborted", verdict, 200) for number, verdict in enumerate(verdicts)]
    found = summary([*outcomes, Outcome(9, "disconnected", "late", 200)], settled())
    assert (found["aborted"], found["too_late"], found["wrong"]) == (gone, late + 1, wrong)


def test_memory_grows_by_process() -> None:
    start, end = {"main": 50, "scheduler": 100, "worker": 7}, {"main": 50, "scheduler": 130, "helper": 5}
    found = summary([], settled(start=CLEAN | {"rss_mib": start}, end=CLEAN | {"rss_mib": end}))
    assert found["rss_growth_by_process"] == {"scheduler": 30, "worker": -7, "helper": 5}
    assert found["rss_growth_mib"] == 28


def test_drafts_are_told_where_there_are_some() -> None:
    totals = {"drafted_tokens": 6, "accepted_tokens": 5}
    states = [
        CLEAN | {"lim": {"counters": {"lossless": {name: n * count for name, count in totals.items()}}}} for n in (1, 3)
    ]
    found = summary([], settled(start=states[0], end=states[1]))
    assert (found["drafted_tokens"], found["accepted_tokens"]) == (12, 10)
    assert "drafted_tokens" not in summary([], settled())
    assert "drafted_tokens" not in summary([], settled(start=CLEAN | {"lim": {"counters": {}}}))


def test_a_file_holds_both_attentions(tmp_path: Path) -> None:
    path = tmp_path / "soak_cpu.json"
    store(path, "lim", {"lost": 1})
    store(path, "lossless", {"lost": 0})
    store(path, "lim", {"lost": 2})
    assert json.loads(path.read_text()) == {"lim": {"lost": 2}, "lossless": {"lost": 0}}


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "soak.jsonl"
    for seed in (1, 2):
        report = Report(path, seed)
        for outcome in OUTCOMES[: 2 + seed]:
            report.add(outcome)
    with path.open("a") as file:
        file.write('{"seed": 1, "at": 3, "numb')
    found = earlier(path, 1)
    assert found.outcomes == OUTCOMES[:3]
    assert found.next_number == 3
    assert earlier(path, 3).next_number == 0
    assert earlier(tmp_path / "none", 1).outcomes == []


def test_the_seconds_of_several_runs_add_up(tmp_path: Path) -> None:
    path = tmp_path / "soak.jsonl"
    line = '{{"seed": 1, "at": {}, "number": {}, "kind": "plain", "verdict": "answered"}}\n'
    path.write_text("".join(line.format(at, number) for number, at in enumerate((1.0, 4.0, 0.5, 2.5))))
    assert earlier(path, 1).seconds == pytest.approx(6.5)
