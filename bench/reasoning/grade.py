"""Whether an answer is the expected one, and which answer a majority gives. For comparable numbers use lm-eval.

arithmetic   the one number in it
aime         one number, behind the last equals sign if there are any
math500      anything that equals the published answer, by math-verify where it is more than a number or words
gpqa         one letter
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from bench.reasoning import algebra
from bench.reasoning.latex import number, tidy

_LABEL = r"(?:(?:the|correct|right|best|final|answer|option|choice|is)\b[\s:]*)*"
_LETTER = re.compile(
    rf"{_LABEL}[(\[]?([A-D])(?:[)\].:,]+(?: (.*))?|( (?:\(|because|is (?:correct|right)).*)?)",
    re.IGNORECASE | re.DOTALL,
)
_OTHER_LETTER = re.compile(r"(?:or|and)\b|\(?[A-D]\)?$|.*[( ][A-D]\)", re.DOTALL)
_WORDS = re.compile(r"[A-Za-z0-9 '.,()-]*[A-Za-z]{3}[A-Za-z0-9 '.,()-]*")
_COMMAND = re.compile(r"\\(?:begin|end)\{[^{}]*\}|\\[A-Za-z]+")
_SEVERAL_VALUES = re.compile(r"[<>]|\\(?:pm|mp|le|ge|ne|in|cup|emptyset|\{)")


def is_correct(extracted: str | None, expected: str, kind: str) -> bool:
    """Whether an extracted answer is the expected one."""
    return extracted is not None and _same(expected, extracted, kind)


def majority(answers: Iterable[str], kind: str) -> str | None:
    """The answer that most of ``answers`` give, as it is given first; of equally frequent ones the first."""
    votes: dict[str, int] = {}
    for answer in answers:
        if _same(answer, answer, kind):  # it can be an answer of that kind
            first = next((other for other in votes if _same(other, answer, kind)), answer)
            votes[first] = votes.get(first, 0) + 1
    return max(votes, key=votes.__getitem__, default=None)


def _same(expected: str, found: str, kind: str) -> bool:
    one, other = tidy(expected), tidy(found)
    if not one or not other:
        return False
    if kind == "math500":
        return _equal(one, other)
    value = {"gpqa": _letter, "aime": _integer, "arithmetic": _only_number}[kind]
    return value(other) is not None and value(one) == value(other)


def _letter(text: str) -> str | None:
    """The one choice, A to D, that an answer names; None for several, and for words that begin with such a letter."""
    found = _LETTER.fullmatch(text)
    if found is None or _OTHER_LETTER.match(found[2] or found[3] or ""):
        return None
    return found[1].upper()


def _integer(text: str) -> int | None:
    value = None if "," in text else number(text.rpartition("=")[2].strip("() "))
    return int(value) if value is not None and value.denominator == 1 else None


def _only_number(text: str) -> object:
    """The number behind the last equals sign, if it is the only one there."""
    found = re.findall(r"-?[\d,.]*\d", text.rpartition("=")[2])
    return number(found[0]) if len(found) == 1 else None


def _equal(one: str, other: str) -> bool:
    """Whether two tidied answers of mathematics are the same."""
    if one == other:
        return True
    if None not in (values := (number(one), number(other))):
        return values[0] == values[1]
    one, other = (re.sub(r",? (?:and|or) ", ", ", side) for side in (one, other))
    if _WORDS.fullmatch(one) or _WORDS.fullmatch(other):
        return re.findall(r"\w+", one.casefold()) == re.findall(r"\w+", other.casefold())
    return _comparable(one, other) and algebra.equal(one, other)


def _comparable(one: str, other: str) -> bool:
    """Whether math-verify can tell them apart. No upstream issue is known for what it confuses: X with x, sets with
    tuples, 4,4 with 4, 12_8 with a decimal number."""
    letters = [set(re.findall("[A-Za-z]", _COMMAND.sub(" ", side))) for side in (one, other)]
    if {letter.swapcase() for letter in letters[0] - letters[1]} & letters[1]:
        return False
    if any(side.startswith(r"\{") for side in (one, other)) and any(side[0] in "([" for side in (one, other)):
        return False
    if re.search(r"\d_\d", one + other):
        return False
    return "," not in other or "," in one or _SEVERAL_VALUES.search(one) is not None
