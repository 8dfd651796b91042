"""What a text answers, and which answers count as equal."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.reasoning.grade import extract, is_correct, last_boxed

EXTRACTED = {
    "boxed": (r"so \boxed{42}.", "math500", "42"),
    "last-of-two": (r"\boxed{1} and then \boxed{2}", "math500", "2"),
    "nested-braces": (r"\boxed{\frac{1}{2}}", "math500", r"\frac{1}{2}"),
    "escaped-braces": (r"\boxed{\{1, 2\}}", "math500", r"\{1, 2\}"),
    "inner-of-nested": (r"\boxed{\boxed{7}}", "math500", "7"),
    "cut-off-box": (r"\boxed{3} or \boxed{\frac{1}{", "math500", "3"),
    "empty-box": (r"\boxed{3} or \boxed{}", "math500", "3"),
    "only-an-empty-box": (r"The answer is 8. The answer is \boxed{}.", "math500", "8"),
    "stray-brace-before": (r"f = {x \boxed{5}", "math500", "5"),
    "box-before-phrase": (r"The answer is 3. \boxed{4} Answer: 5", "math500", "4"),
    "answer-is": ("The answer is 3. So the answer is 17. Done.", "math500", "17"),
    "answer-colon": ("**Answer:** 3.5", "math500", "3.5"),
    "answer-next-line": ("The final answer is:\n\n12 apples\nBye", "aime", "12 apples"),
    "last-number": ("we have 3 and then 1,234.", "arithmetic", "1,234"),
    "last-number-after-minus": ("20-5", "arithmetic", "5"),
    "no-number-in-math": ("we have 3 and then 4", "math500", None),
    "no-number-in-aime": ("we have 3 and then 4", "aime", None),
    "nothing": ("I do not know", "arithmetic", None),
}


@pytest.mark.parametrize(("text", "kind", "answer"), EXTRACTED.values(), ids=EXTRACTED.keys())
def test_what_a_text_answers(text: str, kind: str, answer: str | None) -> None:
    assert extract(text, kind) == answer


@given(st.text(alphabet="{}\\ boxed1", max_size=40), st.text(alphabet="ab12 ", min_size=1).filter(str.strip))
def test_a_closed_box_at_the_end_is_found_whatever_stands_before(before: str, inside: str) -> None:
    assert last_boxed(before + " \\boxed{" + inside + "}") == inside.strip()


def test_a_model_that_repeats_itself_is_graded_in_no_time() -> None:
    began = time.monotonic()
    for text in (r"\boxed{" * 40_000, "1" * 200_000, "answer is " * 20_000, r"\boxed{" + "9" * 100_000 + "}"):
        assert not is_correct(extract(text, "arithmetic"), "42", "arithmetic")
    assert time.monotonic() - began < 10


RIGHT = {
    "same": ("math500", "x^2+1", "x^2 + 1"),
    "sizes": ("math500", r"\left( 3, \frac{\pi}{2} \right)", r"(3,\dfrac{\pi}{2})"),
    "short-fraction": ("math500", r"\frac12", r"\tfrac{1}{2}"),
    "short-denominator": ("math500", r"\frac{1}2", "0.5"),
    "fraction-and-slash": ("math500", "-3/4", r"-\frac{3}{4}"),
    "sign-inside": ("math500", r"\frac{-3}{4}", r"-\frac{3}{4}"),
    "unreduced": ("math500", "4/8", r"\frac{1}{2}"),
    "trailing-zeros": ("math500", "2.500", "2.5"),
    "trailing-dot": ("math500", "5.", "5"),
    "dollars": ("math500", "$18.90$", r"\$18.9"),
    "thousands": ("math500", "1,234", "1234"),
    "latex-thousands": ("math500", r"10{,}000", "10,000"),
    "percent": ("math500", r"45\%", "45"),
    "degrees": ("math500", r"90^\circ", "90"),
    "text": ("math500", r"\text{Evelyn}", "Evelyn"),
    "root": ("math500", r"\sqrt2", r"\sqrt{2}"),
    "names-x": ("math500", "x = 5", "5"),
    "still-boxed": ("math500", r"\boxed{5}", "5"),
    "aime-zeros": ("aime", "073", "73"),
    "aime-words": ("aime", r"73 \text{ ways}", "73"),
    "aime-equation": ("aime", "m + n = 73", "73"),
    "aime-result-first": ("aime", "73 = 70 + 3", "73"),
    "aime-fraction": ("aime", r"\frac{146}{2}", "73"),
    "reason-behind": ("arithmetic", "42 because 30 + 12 is that", "42"),
    "number-in-words": ("arithmetic", "about 42 coins", "42"),
    "negative": ("arithmetic", "-7", "-7"),
    "letter": ("gpqa", "C", "C"),
    "letter-in-parentheses": ("gpqa", "(C)", "C"),
    "letter-as-text": ("gpqa", r"\text{C}", "C"),
    "letter-with-choice": ("gpqa", "C) the third one", "C"),
    "letter-named": ("gpqa", "option (C)", "C"),
    "small-letter": ("gpqa", "c", "C"),
}


WRONG = {
    "other-number": ("math500", "5", "6"),
    "order-matters": ("math500", "(1,2)", "(2,1)"),
    "tuple-is-no-thousand": ("math500", "(1,234)", "1234"),
    "zero-denominator": ("math500", r"\frac{1}{0}", "0"),
    "case-matters": ("math500", "X", "x"),
    "leftarrow-is-no-size": ("math500", r"\leftarrow", "arrow"),
    "minus": ("math500", "-5", "5"),
    "root-is-no-integer": ("aime", r"10\sqrt{2}", "10"),
    "power-is-no-integer": ("aime", "2^{10}", "2"),
    "product-is-not-its-first-factor": ("arithmetic", "6 * 7", "6"),
    "pair-is-no-number": ("aime", "12, 13", "12"),
    "pair-without-space": ("aime", "(3,5)", "3"),
    "other-letter": ("gpqa", "(B)", "C"),
    "word-is-no-letter": ("gpqa", "Carbon", "C"),
    "no-letter": ("gpqa", "5 eV", "C"),
}


@pytest.mark.parametrize(("kind", "found", "expected"), RIGHT.values(), ids=RIGHT.keys())
def test_answers_that_are_the_same(kind: str, found: str, expected: str) -> None:
    assert is_correct(found, expected, kind)


@pytest.mark.parametrize(("kind", "found", "expected"), WRONG.values(), ids=WRONG.keys())
def test_answers_that_are_not_the_same(kind: str, found: str, expected: str) -> None:
    assert not is_correct(found, expected, kind)
