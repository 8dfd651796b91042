"""Votes: the last number of a text, and the most frequent answer."""

from __future__ import annotations

import pytest

from bench.programs.self_consistency import last_number, majority


def test_the_most_frequent_answer_wins() -> None:
    assert majority(["7", "9", "9", None, "7", "9"]) == ("9", {"7": 2, "9": 3})


def test_of_equally_frequent_answers_the_first_given_wins() -> None:
    assert majority(["3", "5", "5", "3"])[0] == "3"
    assert majority(["5", "3", "3", "5"])[0] == "5"


def test_no_answer_has_no_vote() -> None:
    assert majority([None, None, "4", None]) == ("4", {"4": 1})
    assert majority([None]) == (None, {})


@pytest.mark.parametrize(
    ("text", "found"),
    [(" 12 crates", "12"), ("1 + 2 = 3.", "3"), ("1,200 left", "1200"), ("-07", "-7"), ("none", None), ("1,2", "2")],
)
def test_the_last_number_of_a_text(text: str, found: str | None) -> None:
    assert last_number(text) == found
