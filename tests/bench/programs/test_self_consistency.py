"""Votes: the last number of a text, and the most frequent answer."""

from __future__ import annotations

from bench.programs.self_consistency import last_number, majority


def test_the_most_frequent_answer_wins_of_equals_the_first_given() -> None:
    assert majority(["7", "9", "9", None, None, None, "9"]) == ("9", {"7": 1, "9": 3})
    assert majority(["5", "3", "3", "5"])[0] == "5"
    assert majority([None]) == (None, {})


def test_the_last_number_of_a_text() -> None:
    found = {" 12 crates": "12", "1 + 2 = 3.": "3", "1,200 left": "1200", "-07": "-7", "none": None, "1,2": "2"}
    assert {text: last_number(text) for text in found} == found
