"""The number that a tidied answer is, and the one number that its words state."""

from __future__ import annotations

import re
from fractions import Fraction

from bench.reasoning.latex import CALCULATING_WORD

# Up to 50 digits: a model that repeats itself may write thousands.
_WHOLE = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d{1,50})"
_DECIMAL = rf"(?:{_WHOLE}(?:\.\d{{0,50}})?|\.\d{{1,50}})(?![\d.]*\d)"
_SIGNED = rf"[-+]? ?{_DECIMAL}"
_PLAIN = re.compile(_SIGNED)
_REPEATING = re.compile(r"([-+]?) ?(\d{1,20})?\.(\d{0,20}) ?\\overline ?\{ ?(\d{1,20}) ?\}")
_FRACTION = re.compile(rf"([-+]?) ?(?:(\d{{1,50}}) ?)?\\frac\{{ ?({_SIGNED}) ?\}}\{{ ?({_SIGNED}) ?\}}")
_SLASH = re.compile(rf"([-+]?) ?(?:(\d{{1,50}}) (?:and )?)?({_DECIMAL}) ?/ ?({_SIGNED})")
_RESIDUE = re.compile(rf"({_SIGNED}) ?\(?(?:\\[pb]?mod(?![A-Za-z])|mod(?:ulo)?(?![A-Za-z])) ?\{{?(\d{{1,50}})\}}?\)?")

_ORDINAL = re.compile(r"(?<=\d) ?\^? ?\{? ?(?:st|nd|rd|th)(?![A-Za-z]) ?\}?")
_RESULT_OF = re.compile(r"=|\\equiv|\\approx")
_REASON = re.compile(r"[, ]+\(?(?:as|so|which|for)(?![A-Za-z]).*", re.IGNORECASE | re.DOTALL)
_NOT_ONE = re.compile(
    r"[<>~?]|=[^=]*[,;]\s[^=]*=|\\(?:le|ge|ne|pm|mp|in|cup|cap|to)(?![A-Za-z])"
    r"|(?<![A-Za-z])(?:neither|either|between|under|above|below|up to|at least|at most"
    r"|(?:more|less|fewer|greater|larger|smaller|higher|lower) than)(?![A-Za-z])",
    re.IGNORECASE,
)
_IN_TEXT = re.compile(rf"(?<![\w.])[-+]?{_DECIMAL}(?!\w)")
# "42 apples", "42, I think": a number, and then words.
_LEADING = re.compile(rf"[^\w\\+.-]*({_SIGNED})[\s.,;:)]+\(?[A-Za-z]{{2}}")
_OPERATOR = re.compile(r"[\\^*/+<>%_{}|]|\d ?[B-HJ-Zb-z](?![A-Za-z])|\d ?!|\d\s*-|-\s+\d|[([].*,")


def number(text: str) -> Fraction | None:
    """The value of a number: a decimal, a fraction, a mixed or repeating one, a residue; None for anything else."""
    text = text.strip().removesuffix("%").strip()
    if _PLAIN.fullmatch(text):
        return _value(text)
    if found := _REPEATING.fullmatch(text):
        return _repeating(*found.groups(""))
    if found := _FRACTION.fullmatch(text) or _SLASH.fullmatch(text):
        return _fraction(*found.groups(""))
    if (found := _RESIDUE.fullmatch(text)) and int(found[2]):
        return _value(found[1]) % int(found[2])
    return None


def stated(text: str) -> Fraction | None:
    """The one number that words state: the result of the last equation, a leading number, or the only one."""
    text = _REASON.sub("", _ORDINAL.sub("", text))
    if states_several(text):
        return None
    for part in reversed(_RESULT_OF.split(text)):
        part = part.strip(" .,;:")
        if (value := number(part)) is not None:
            return value
        found = _IN_TEXT.findall(part)
        if _OPERATOR.search(part) or not found:
            continue
        if leading := _LEADING.match(part):
            return _value(leading[1])
        return _value(found[0]) if len(found) == 1 else None
    return None


def states_several(text: str) -> bool:
    """Whether words or signs say that it is not one number: "73 or 74", ">73", "73 times 2"."""
    return any(pattern.search(text) for pattern in (_NOT_ONE, CALCULATING_WORD))


def last_in(text: str) -> str | None:
    """The last number in a text, as written there."""
    numbers = _IN_TEXT.findall(text)
    return str(numbers[-1]).rstrip(".") if numbers else None


def _value(text: str) -> Fraction:
    return Fraction(re.sub(r"[, ]", "", text).rstrip("."))


def _fraction(sign: str, whole: str, above: str, below: str) -> Fraction | None:
    over, under = _value(above), _value(below)
    if under == 0 or (whole and not 0 < over < under):
        return None
    value = over / under + int(whole or 0)
    return -value if sign == "-" else value


def _repeating(sign: str, whole: str, digits: str, period: str) -> Fraction:
    value = Fraction(int(whole + digits + period or 0) - int(whole + digits or 0))
    value /= 10 ** len(digits) * (10 ** len(period) - 1)
    return -value if sign == "-" else value
