"""A soak's figures, and that a run which was stopped can go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.soak.client import Outcome
from bench.soak.replay import Replayed
from bench.soak.results import Report, store, summary

OUTCOMES = [
    Outcome(0, "plain", "answered", 200, [1, 2], retractions=2),
    Outcome(1, "malformed", "refused", 400),
    Outcome(2, "disconnected", "gone", 200),
    Outcome(3, "streamed", "lost", 500, detail="no answer"),
]
CLEAN = {"rss_mib": {"scheduler": 100}, "gpu_mib": 0, "lim": None}


def found_of(outcomes: list[Outcome], **other: Any) -> dict[str, Any]:
    settled = {"start": CLEAN, "end": CLEAN, "replayed": Replayed(1), "stuck": 0, "leaked_tokens": 0, "healthy": True}
    return summary(outcomes, **(settled | other))


def test_outcomes_add_up() -> None:
    found = found_of(OUTCOMES)
    counts = {"requests": 4, "answered": 1, "aborted": 1, "bad_inputs": 1, "retracted": 2, "lost": 1}
    assert {name: found[name] for name in counts} == counts
    assert found["wrong"] == ["lost"]
    assert found["examples"] == ["3 (streamed, status 500): no answer"]


@pytest.mark.parametrize(
    ("other", "wrong"),
    [
        ({}, []),
        ({"stuck": 3}, ["stuck"]),
        ({"leaked_tokens": 7}, ["leaked_tokens"]),
        ({"replayed": Replayed(2, differing=[5])}, ["differing"]),
        ({"replayed": Replayed(2, near_ties=1)}, []),
        ({"healthy": False}, ["healthy"]),
        ({"end": CLEAN | {"rss_mib": {"scheduler": 900}}}, []),
    ],
)
def test_what_is_wrong_is_named(other: dict[str, Any], wrong: list[str]) -> None:
    assert found_of(OUTCOMES[:3], **other)["wrong"] == wrong


@pytest.mark.parametrize(
    ("gone", "late", "wrong"), [(3, 3, []), (1, 2, []), (3, 4, ["too_late"]), (0, 3, ["too_late"])]
)
def test_a_server_that_heeds_no_aborts_is_wrong(gone: int, late: int, wrong: list[str]) -> None:
    """Clients that vanish, in time or late, say nothing about aborts."""
    verdicts = ["gone"] * gone + ["late"] * late
    outcomes = [Outcome(number, "aborted", verdict, 200) for number, verdict in enumerate(verdicts)]
    vanished = [Outcome(9, "disconnected", verdict, 200) for verdict in ("gone", "gone", "gone", "gone", "late")]
    found = found_of(outcomes + vanished)
    assert (found["aborted"], found["too_late"], found["wrong"]) == (gone + 4, late + 1, wrong)


def test_memory_and_drafts_are_told_by_difference() -> None:
    rss = {"main": 50, "scheduler": 100, "worker": 7}, {"main": 50, "scheduler": 130, "helper": 5}
    lim = ({"counters": {"lossless": {"drafted_tokens": drafted}}} for drafted in (6, 18))
    start, end = ({"rss_mib": mib, "gpu_mib": 0, "lim": one} for mib, one in zip(rss, lim, strict=True))
    found = found_of([], start=start, end=end)
    assert found["rss_growth_by_process"] == {"scheduler": 30, "worker": -7, "helper": 5}
    assert (found["rss_growth_mib"], found["drafted_tokens"]) == (28, 12)
    assert "drafted_tokens" not in found_of([], start=CLEAN | {"lim": {"counters": {}}})


def test_a_file_holds_both_attentions(tmp_path: Path) -> None:
    path = tmp_path / "soak_cpu.json"
    for attention, lost in (("lim", 1), ("lossless", 0), ("lim", 2)):
        store(path, attention, {"lost": lost})
    assert json.loads(path.read_text()) == {"lim": {"lost": 2}, "lossless": {"lost": 0}}


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "soak.jsonl"
    for seed in (1, 2):
        report = Report(path, seed)
        for outcome in OUTCOMES[: 2 + seed]:
            report.add(outcome)
    with path.open("a") as file:
        file.write('{"seed": 1, "at": 3, "numb')
    found = Report(path, 1)
    assert (found.outcomes, found.first) == (OUTCOMES[:3], 3)
    assert (Report(path, 3).outcomes, Report(path, 3).first) == ([], 0)
    line = '{{"seed": 1, "at": {}, "number": {}, "kind": "plain", "verdict": "answered"}}\n'
    path.write_text("".join(line.format(at, number) for number, at in enumerate((1.0, 4.0, 0.5, 2.5))))
    assert Report(path, 1).seconds == pytest.approx(6.5), "of both runs"
