"""The figures of a run, from samples made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from bench.reasoning.grade import is_correct
from bench.reasoning.results import Sample, figures


def sample(problem: str, number: int, extracted: str | None, expected: str = "1", **other: Any) -> Sample:
    facts: dict[str, Any] = {"seed": 0, "prompt_tokens": 5, "completion_tokens": 10, "finish_reason": "stop"}
    facts |= {"correct": is_correct(extracted, expected, "aime"), "started": 0.0, "seconds": 1.0, "text": ""} | other
    return Sample(problem=problem, sample=number, extracted=extracted, expected=expected, **facts)


def test_figures() -> None:
    failed: dict[str, Any] = {"correct": None, "completion_tokens": None, "finish_reason": None, "error": "500"}
    samples = [
        sample("a", 2, "2", completion_tokens=40, finish_reason="length", started=10.0, seconds=2.0),
        sample("a", 0, "1"),
        sample("a", 1, "1.0", started=0.5),
        sample("b", 0, None, completion_tokens=20),
        sample("b", 1, "1", started=11.0, seconds=4.0),
        sample("c", 1, "1"),
        sample("c", 0, "2"),
        sample("d", 0, None, started=20.0, seconds=3.0, **failed),
    ]
    found = figures(samples, "aime")
    assert (found["problems"], found["samples"], found["errors"]) == (3, 7, 1)
    assert found["accuracy"] == found["pass_at_1"] == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 3)
    assert found["accuracy_standard_error"] == pytest.approx(1 / 6 / 3)  # deviations 1/9, -1/18, -1/18
    assert found["majority_vote"] == pytest.approx(2 / 3)  # a and b; in c the first of two is wrong
    assert found["without_answer"] == 1
    assert (found["mean_tokens"], found["median_tokens"], found["max_tokens"]) == (pytest.approx(110 / 7), 10, 40)
    assert found["at_maximum_length"] == pytest.approx(1 / 7)
    assert found["seconds"] == 1.5 + 5.0 + 3.0  # 0 to 1.5, 10 to 15, 20 to 23
    assert found["tokens_per_second"] == pytest.approx(110 / 9.5)


def test_figures_of_nothing() -> None:
    found = figures([], "aime")
    assert found["samples"] == 0
    assert found["accuracy"] is found["tokens_per_second"] is found["at_maximum_length"] is None
    assert found["seconds"] == 0
