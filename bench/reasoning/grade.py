r"""What a text answers, and whether two answers are the same.

An answer is the last ``\boxed{...}``, else what follows the last "answer is" or "Answer:", else, for arithmetic, the
last number. Answers are compared by their canonical form, which also is what a majority vote counts. There is no
computer algebra in here: ``x+1`` and ``1+x`` are different answers.
"""

from __future__ import annotations

import re
from fractions import Fraction

_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_PHRASE = re.compile(r"\banswer\b[*_ \t]*(?:is\b|[:=])[*_\s:]*", re.IGNORECASE)
_STATEMENT_END = re.compile(r"[.!?](?:\s|$)|\n|$")

# Up to 50 digits: a model that repeats itself may write thousands.
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+|\d{1,50})(?:\.\d{0,50})?(?!\d)|\.\d{1,50}(?!\d)"
_NUMBER = rf"[-+]?(?:{_DECIMAL})"
_PLAIN = re.compile(_NUMBER)
_RATIO = re.compile(rf"({_NUMBER})/({_NUMBER})")
_LATEX_RATIO = re.compile(rf"([-+]?)\\frac\{{({_NUMBER})\}}\{{({_NUMBER})\}}")
_IN_TEXT = re.compile(rf"(?<![\w.])[-+]?(?:{_DECIMAL})")
# "42", "42 apples" and "42 because 30 + 12": a number, and then nothing that goes on calculating.
_LEADING = re.compile(rf"[^\w\\+-]*({_NUMBER})(?:$|[\s.,;:!?)]+(?:$|[A-Za-z(]))")
_OPERATOR = re.compile(r"[\\^*/+=<>×÷√]|\d\s*-|-\s+\d")

_MACROS = [
    (re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\[dt]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[,;:! ()\[\]]|\\?\$|\\?%|\*\*"), ""),
    (re.compile(r"\^\{?\\circ\}?|\^\{?°\}?|°"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"[\u2212\u2013]"), "-"),
]
_SHAPES = [
    (re.compile(r"\\frac(\d)(?=[\d{])"), r"\\frac{\1}"),
    (re.compile(r"(\\frac\{[^{}]*\})(\d)"), r"\1{\2}"),
    (re.compile(r"\\sqrt(\d)"), r"\\sqrt{\1}"),
    (re.compile(r"^[A-Za-z]="), ""),
    (re.compile(r"^\{([^{}]*)\}$"), r"\1"),
]
_LETTER = re.compile(r"(?:(?i:option|choice|answer)\s*)?[(\[]?([A-D])(?![A-Za-z0-9'])")


def extract(text: str, kind: str) -> str | None:
    """The answer that ``text`` gives, as written there; None if it gives none."""
    if boxed := last_boxed(text):
        return boxed
    text = text.replace(r"\boxed{}", "")  # the prompt's own words, repeated
    for phrase in reversed(list(_PHRASE.finditer(text))):
        end = _STATEMENT_END.search(text, phrase.end())
        if end and (answer := text[phrase.end() : end.start()].strip(" \t\r*_`\"'")):
            return answer
    if kind == "arithmetic" and (numbers := _IN_TEXT.findall(text)):
        return str(numbers[-1]).rstrip(".")
    return None


def last_boxed(text: str) -> str | None:
    r"""The contents of the last ``\boxed{...}`` that is closed and not empty; of nested ones the inner."""
    opened: list[int | None] = []
    last, contents = -1, None
    for token in _BRACES.finditer(text):
        if token[0] == "}":
            start = opened.pop() if opened else None
            if start is not None and start > last and (inside := text[start : token.start()].strip()):
                last, contents = start, inside
        elif token[0].endswith("{") and token[0] != r"\{":
            opened.append(token.end() if len(token[0]) > 1 else None)
    return contents


def canonical(answer: str, kind: str) -> str | None:
    """The form in which answers are compared; None if it cannot be an answer of that kind.

    ``gpqa``: a letter. ``aime``, ``arithmetic``: a number. ``math500``: a number, else LaTeX without its variants.
    """
    if kind == "gpqa":
        return _letter(answer)
    value = _stated_number(answer) if kind in ("aime", "arithmetic") else None
    if value is None:
        value = number(normalised(answer))
    if value is not None:
        return str(value)
    return normalised(answer) if kind == "math500" else None


def is_correct(extracted: str | None, expected: str, kind: str) -> bool:
    """Whether an extracted answer is the expected one."""
    found = None if extracted is None else canonical(extracted, kind)
    return found is not None and found == canonical(expected, kind)


def normalised(answer: str) -> str:
    r"""LaTeX without ``\boxed``, spaces, ``$``, sizes, percent and degree signs, and with one form of fraction."""
    text = "".join(_without_macros(last_boxed(answer) or answer).split()).rstrip(".,;")
    for pattern, form in _SHAPES:
        text = pattern.sub(form, text)
    return text


def number(text: str) -> Fraction | None:
    """The value of a number, ``a/b`` or ``\\frac{a}{b}`` without spaces; None for anything else."""
    if _PLAIN.fullmatch(text):
        return _value(text)
    if ratio := _RATIO.fullmatch(text):
        sign, above, below = "", ratio[1], ratio[2]
    elif ratio := _LATEX_RATIO.fullmatch(text):
        sign, above, below = ratio[1], ratio[2], ratio[3]
    else:
        return None
    if _value(below) == 0:
        return None
    value = _value(above) / _value(below)
    return -value if sign == "-" else value


def _value(text: str) -> Fraction:
    return Fraction(text.replace(",", "").rstrip("."))


def _without_macros(text: str) -> str:
    for pattern, form in _MACROS:
        text = pattern.sub(form, text)
    return text


def _stated_number(answer: str) -> Fraction | None:
    """The one number that words state: the result of the last equation, a leading number, or the only one."""
    for part in reversed(_without_macros(last_boxed(answer) or answer).split("=")):
        part = part.strip()
        if (value := number(normalised(part))) is not None:
            return value
        if leading := _LEADING.match(part):
            return _value(leading[1])
        if len(found := _IN_TEXT.findall(part)) == 1 and not _OPERATOR.search(part):
            return _value(found[0])
    return None


def _letter(answer: str) -> str | None:
    text = _without_macros(last_boxed(answer) or answer).strip()
    if len(text) == 1 and text in "abcd":
        return text.upper()
    found = _LETTER.match(text)
    return found[1] if found else None
