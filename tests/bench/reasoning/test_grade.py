"""What a text answers, and which answers count as equal: the cases are in ``grading_cases.csv``."""

from __future__ import annotations

import csv
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.reasoning import algebra
from bench.reasoning.grade import is_correct, majority
from bench.reasoning.latex import extract, last_boxed

with Path(__file__).with_name("grading_cases.csv").open(encoding="utf-8", newline="") as file:
    CASES = {case["name"]: case for case in csv.DictReader(file)}
GRADED = {name: case for name, case in CASES.items() if case["kind"] != "extract"}
EXTRACTED = {name: case for name, case in CASES.items() if case["kind"] == "extract"}


def test_every_kind_has_right_gradings_and_wrong_ones() -> None:
    counts = Counter((case["task"], case["verdict"]) for case in GRADED.values())
    assert set(counts) == {(kind, v) for kind in ("arithmetic", "aime", "math500", "gpqa") for v in ("right", "wrong")}


@pytest.mark.parametrize("case", GRADED.values(), ids=GRADED.keys())
def test_gradings(case: dict[str, str]) -> None:
    found = case["text"] if case["kind"] == "answer" else extract(case["text"], case["task"])
    assert is_correct(found, case["expected"], case["task"]) == (case["verdict"] == "right"), found


@pytest.mark.parametrize("case", EXTRACTED.values(), ids=EXTRACTED.keys())
def test_what_a_text_answers(case: dict[str, str]) -> None:
    assert extract(case["text"], case["task"]) == (case["expected"] or None)


VOTES = {
    "no-answers-of-the-kind": ("aime", ["73 or 74", "73 or 74", ">73", ">73", "73"], "73"),
    "equal-expressions": ("math500", ["5", "5", "x+1", "1 + x", r"\left(x+1\right)"], "x+1"),
    "brackets-do-not-vote": ("math500", [r"\[", r"\[", "$$", "$$", "5"], "5"),
    "first-of-two": ("math500", ["2", "3", "3", "2"], "2"),
    "letters": ("gpqa", ["A or B", "A or B", "(c)", "C)", "A", "A mixture"], "(c)"),
    "none": ("gpqa", ["A or B", "C-H bond"], None),
}


@pytest.mark.parametrize(("kind", "answers", "expected"), VOTES.values(), ids=VOTES.keys())
def test_a_majority(kind: str, answers: list[str], expected: str | None) -> None:
    assert majority(answers, kind) == expected


@given(st.text(alphabet="{}\\ boxed1", max_size=40), st.text(alphabet="ab12 ", min_size=1).filter(str.strip))
def test_a_closed_box_at_the_end_is_found_whatever_stands_before(before: str, inside: str) -> None:
    found = last_boxed(before + " \\boxed{" + inside + "}")
    assert found is not None
    assert (last_boxed(found) or found) == inside.strip()


ENDLESS = {
    "boxes": r"\boxed{" * 40_000,
    "digits": "1" * 200_000,
    "phrases": "answer is " * 20_000,
    "open-displays": "The answer is:\n\\[\n" * 10_000,
    "boxed-digits": r"\boxed{" + "9" * 100_000 + "}",
    "braces": "{" * 100_000,
    "spaces": "answer is" + " " * 100_000 + "answer",
    "boxed-fonts": r"\boxed{" + r"\text{" * 150 + "}" * 151,
    "boxed-letters": r"\boxed{" + "option " * 140 + "}",
    "boxed-words": r"\boxed{" + "a" * 990 + "!}",
}


@pytest.mark.parametrize("kind", ["arithmetic", "aime", "math500", "gpqa"])
@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS.keys())
def test_a_model_that_repeats_itself_is_graded_in_no_time(text: str, kind: str) -> None:
    began = time.monotonic()
    assert not is_correct(extract(text, kind), "C" if kind == "gpqa" else "42", kind)
    assert time.monotonic() - began < 15  # a machine ten times slower than ours has as long


FRAGMENTS = [
    *"{}()[]^_!=,.:-/$%&xC",
    *("\\\\", r"\{", r"\[", r"\frac", r"\frac{1}{", r"\sqrt", r"\boxed{", r"\text{", r"\in", r"\pm", r"^\circ"),
    *("0", "73", "2.5", "1,234", "(A)", "√", "²", "answer is ", " or ", "**", "\n", "\0", "\ud800"),
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=2), max_size=14).map("".join)


@settings(deadline=None)
@given(TEXTS, st.sampled_from(["arithmetic", "aime", "math500", "gpqa"]))
def test_no_text_crashes_the_grader(text: str, kind: str) -> None:
    """What math-verify makes of such texts is in ``test_algebra.py``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algebra, "equal", lambda expected, found: False)
        for answer in (text, extract(text, kind), extract(rf"\boxed{{{text}}}", kind)):
            assert is_correct(answer, "C" if kind == "gpqa" else "73", kind) in (True, False)
        assert majority([text, text], kind) in (text, None)
