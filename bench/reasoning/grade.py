"""Whether an answer is the expected one, and which answer a majority gives.

arithmetic   one number, as the text states it
aime         likewise; an expression counts by its value, which math-verify finds
math500      anything that equals the published answer, by math-verify where it is more than a number or words
gpqa         one letter
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from bench.reasoning import algebra
from bench.reasoning.choice import letter
from bench.reasoning.equal import form, same, squeezed
from bench.reasoning.extract import extract
from bench.reasoning.latex import folded, is_words, plain, tidy, without_unit
from bench.reasoning.number import number, stated, states_several

__all__ = ["canonical", "extract", "is_correct", "majority"]

_NO_EXPRESSION = re.compile(r"[A-Za-z]{4}|\d ?(?:_| \.?\d)|[,;:]|!!")


def is_correct(extracted: str | None, expected: str, kind: str) -> bool:
    """Whether an extracted answer is the expected one."""
    if extracted is None:
        return False
    if kind == "math500":
        return same(expected, extracted)
    found = canonical(extracted, kind)
    return found is not None and found == canonical(expected, kind)


def canonical(answer: str, kind: str) -> str | None:
    """The form by which answers are counted; None if it cannot be an answer of that kind.

    Answers of ``math500`` can be the same and yet differ in form.
    """
    if kind == "gpqa":
        return letter(answer)
    text = tidy(answer)
    if kind == "math500":
        return form(text) or (folded(text) if is_words(text) else squeezed(text)) or None
    value = number(plain(without_unit(text))) or stated(plain(text))
    if value is not None:
        return str(value)
    return _value(text) if kind == "aime" else None


def majority(answers: Iterable[str], kind: str) -> str | None:
    """The answer that most of ``answers`` give, as it is given first; of equally frequent ones the first."""
    first: dict[str, str] = {}  # form -> the first answer that is the same
    votes: Counter[str] = Counter()
    for answer in answers:
        found = canonical(answer, kind)
        if found is None:
            continue
        if found not in first:
            same_as = (other for other in votes if kind == "math500" and same(other, answer))
            first[found] = next(same_as, answer)
        votes[first[found]] += 1
    return votes.most_common(1)[0][0] if votes else None


def _value(text: str) -> str | None:
    """The value of the expression that an answer is, or comes to at its last equals sign."""
    last = text.rpartition("=")[2].strip()
    mathematics = re.sub(r"\\[A-Za-z]+", "", last)
    if not mathematics or _NO_EXPRESSION.search(mathematics) or states_several(plain(text)):
        return None
    return algebra.value(last)
