"""A long generation's stretches and summary, from marks of known speed."""

from __future__ import annotations

import pytest

from bench.speed.long_decode import SURE, check_same, stretches, summarise


def marks(ms: list[float], every: int = 64) -> list[tuple[int, float]]:
    """A mark every 64 tokens; ``ms`` per step of each interval."""
    found, now = [(1, 0.5)], 0.5
    for number, value in enumerate(ms, 1):
        now += value * every / 1e3
        found.append((1 + number * every, now))
    return found


def test_stretches_take_the_time_between_marks() -> None:
    dense, lim = marks([10, 10, 20, 20, 30]), marks([11, 11, 10, 10, 10])
    rows = stretches(dense, lim, prompt=100, length=128)
    assert [row["context"] for row in rows] == [100 + 65, 100 + 193, 100 + 289]
    assert [row["dense_ms"] for row in rows] == pytest.approx([10, 20, 30])
    assert [row["speedup"] for row in rows] == pytest.approx([0.909, 2, 3])


def test_marks_of_the_other_arm_may_lie_elsewhere() -> None:
    """The lossless mode makes several tokens at a time."""
    dense, other = marks([10] * 6), marks([5] * 9, every=43)
    rows = stretches(dense, other, prompt=0, length=128, arm="lossless")
    assert [row["speedup"] for row in rows] == pytest.approx([2] * len(rows))
    assert [row["lossless_ms"] for row in rows] == pytest.approx([5] * len(rows))
    assert [row["context"] for row in rows] == [65, 193, 321]


def test_the_summary_names_the_crossing_and_the_worst() -> None:
    found = {"dense": marks([10, 10, 20, 20]), "lim": marks([10.1, 9.9, 10, 10])}
    rows = stretches(found["dense"], found["lim"], prompt=0, length=64)
    summary = summarise(rows, found, budget=100)
    assert summary["speedup"] == pytest.approx(60 / 40, abs=1e-3)
    assert summary["ahead_from_context"] == rows[1]["context"]
    assert summary["lowest_speedup_within_budget"] == summary["lowest_speedup"] == pytest.approx(0.99)


def test_no_speed_is_reported_of_other_tokens() -> None:
    """Requests that stay with dense's throughout what is compared, or for long enough, are well."""
    check_same([SURE, 900], 900)
    check_same([SURE - 1, 900], SURE - 1)
    check_same([9, 900, 900, 900], 900, allowed=1)
    with pytest.raises(SystemExit, match="at token 10"):
        check_same([9, 900, 10, 900], 900, allowed=1)
    for same, compared in (([900, SURE - 1], 900), ([9, 10], 10)):
        with pytest.raises(SystemExit, match=f"differ from dense's at token {min(same)}; no speed is reported"):
            check_same(same, compared)
