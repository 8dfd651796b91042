"""What a text answers, and which answers count as equal: the cases are in ``grading_cases.csv``."""

from __future__ import annotations

import csv
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.reasoning.grade import canonical, extract, is_correct, majority
from bench.reasoning.latex import last_boxed

with Path(__file__).with_name("grading_cases.csv").open(encoding="utf-8", newline="") as file:
    CASES = {case["name"]: case for case in csv.DictReader(file)}
GRADED = {name: case for name, case in CASES.items() if case["kind"] != "extract"}
EXTRACTED = {name: case for name, case in CASES.items() if case["kind"] == "extract"}
PATIENCE = 60.0  # seconds, for a machine ten times slower than ours


def test_the_table_holds_as_many_right_gradings_as_wrong_ones() -> None:
    verdicts = Counter(case["verdict"] for case in GRADED.values())
    assert set(verdicts) == {"right", "wrong"}
    assert sum(verdicts.values()) >= 300
    assert 0.45 < verdicts["right"] / sum(verdicts.values()) < 0.55
    choices = Counter(case["verdict"] for case in GRADED.values() if case["task"] == "gpqa")
    assert min(choices.values()) >= 30


@pytest.mark.parametrize("case", GRADED.values(), ids=GRADED.keys())
def test_gradings(case: dict[str, str]) -> None:
    found = case["text"] if case["kind"] == "answer" else extract(case["text"], case["task"])
    assert is_correct(found, case["expected"], case["task"]) == (case["verdict"] == "right"), found


@pytest.mark.parametrize("case", EXTRACTED.values(), ids=EXTRACTED.keys())
def test_what_a_text_answers(case: dict[str, str]) -> None:
    assert (extract(case["text"], case["task"]) == (case["expected"] or None)) == (case["verdict"] == "right")


VOTES = {
    "dollars": ("aime", ["$29.00", "29", "30", "30", "29.0"], "29"),
    "no-answers-of-the-kind": ("aime", ["73 or 74", "73 or 74", ">73", ">73", "73"], "73"),
    "equal-expressions": ("math500", ["5", "5", "x+1", "1 + x", r"\left(x+1\right)"], "x+1"),
    "equal-forms": ("math500", ["0.5", "2", "2", r"\frac12", "1/2"], "0.5"),
    "brackets-do-not-vote": ("math500", [r"\[", r"\[", "$$", "$$", "5"], "5"),
    "first-of-two": ("math500", ["2", "3", "3", "2"], "2"),
    "letters": ("gpqa", ["A or B", "A or B", "(c)", r"\text{Answer: C}", "A", "A mixture"], "C"),
    "none": ("gpqa", ["A or B", "C-H bond"], None),
}


@pytest.mark.parametrize(("kind", "answers", "expected"), VOTES.values(), ids=VOTES.keys())
def test_a_majority(kind: str, answers: list[str], expected: str | None) -> None:
    found = majority(answers, kind)
    assert (found and canonical(found, kind)) == (expected and canonical(expected, kind))


@given(st.text(alphabet="{}\\ boxed1", max_size=40), st.text(alphabet="ab12 ", min_size=1).filter(str.strip))
def test_a_closed_box_at_the_end_is_found_whatever_stands_before(before: str, inside: str) -> None:
    assert last_boxed(before + " \\boxed{" + inside + "}") == inside.strip()


ENDLESS = {
    "boxes": r"\boxed{" * 40_000,
    "digits": "1" * 200_000,
    "phrases": "answer is " * 20_000,
    "open-displays": "The answer is:\n\\[\n" * 10_000,
    "boxed-digits": r"\boxed{" + "9" * 100_000 + "}",
    "braces": "{" * 100_000,
    "boxed-parentheses": r"\boxed{" + "(" * 100_000 + "}",
    "spaces": "answer is" + " " * 100_000 + "answer",
    "fractions": r"\boxed{" + r"\frac{1}{" * 2000 + "1" + "}" * 2001,
}


@pytest.mark.parametrize("kind", ["arithmetic", "aime", "math500", "gpqa"])
@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS.keys())
def test_a_model_that_repeats_itself_is_graded_in_no_time(text: str, kind: str) -> None:
    began = time.monotonic()
    assert not is_correct(extract(text, kind), "C" if kind == "gpqa" else "42", kind)
    assert time.monotonic() - began < PATIENCE / 4


HANGING = {
    "tower": "9^{9^{9^9}}",
    "factorials": "10!!!!",
    "factorial": "1000000!",
    "power-of-a-sum": "(x+y+z+w)^{500}",
    "nested-powers": "x^{" * 150 + "2" + "}" * 150,
    "nested-fractions": r"\frac{1}{" * 80 + "1" + "}" * 80,
    "parentheses": "(" * 900,
    "long-sum": "1+" * 450 + "1",
    "surrogate": "\ud800+x",
    "nul": "\0",
}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("kind", ["aime", "math500"])
@pytest.mark.parametrize("text", HANGING.values(), ids=HANGING.keys())
def test_what_keeps_a_parser_busy_ends(text: str, kind: str) -> None:
    began = time.monotonic()
    assert not is_correct(text, "73", kind)
    assert time.monotonic() - began < PATIENCE


FRAGMENTS = (
    *(
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "|",
        "^",
        "_",
        "!",
        "=",
        "<",
        ",",
        ";",
        ":",
        "+",
        "-",
        "/",
        "$",
        "%",
        "&",
        "~",
        "?",
    ),
    *("\\", "\\\\", r"\{", r"\}", r"\[", r"\]", r"\frac", r"\frac{1}{", r"\sqrt", r"\sqrt[3]{", r"\boxed{", r"\text{"),
    *(
        r"\left(",
        r"\right]",
        r"\begin{pmatrix}",
        r"\end{pmatrix}",
        r"\cup",
        r"\infty",
        r"\pm",
        r"\le",
        r"\pmod{",
        r"\log_",
    ),
    *(
        r"\binom",
        r"\sum_{n=1}^",
        r"\int_0^",
        r"\overline{",
        r"\pi",
        r"^\circ",
        " or ",
        " and ",
        " base ",
        "answer is ",
        "\n",
    ),
    *("0", "1", "73", "99", "2.5", "1,234", "x", "y", "i", "C", "(A)", "√", "½", "²", "π", "\ud800", "\0"),
)
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=2), max_size=14).map("".join)
EXPECTED = {
    "aime": ["73"],
    "arithmetic": ["73"],
    "gpqa": ["C"],
    "math500": ["73", "x+1", r"\frac{1}{2}", "(1,2)", r"\text{Evelyn}", r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}"],
}


@pytest.mark.usefixtures("hasty")
@settings(max_examples=150, deadline=timedelta(seconds=PATIENCE))
@given(TEXTS, st.sampled_from([(kind, answer) for kind, answers in EXPECTED.items() for answer in answers]))
def test_no_text_crashes_or_hangs_the_grader(text: str, graded: tuple[str, str]) -> None:
    kind, expected = graded
    found = extract(text, kind)
    assert found is None or found.strip()
    for answer in (found, text, extract(rf"\boxed{{{text}}}", kind)):
        assert is_correct(answer, expected, kind) in (True, False)
    assert majority([text, expected, expected], kind) is not None
