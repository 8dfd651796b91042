"""Whether two answers of mathematics are the same: numbers and words by themselves, everything else by math-verify."""

from __future__ import annotations

import re
from fractions import Fraction

from bench.reasoning import algebra
from bench.reasoning.latex import folded, is_words, plain, tidy, units, without_unit
from bench.reasoning.number import number

_BASED = re.compile(
    r"\(?([0-9A-F]+)\)?(?: ?_ ?\{?| \(? ?base)[\s({]*(?:\\text\{)?(?:base)? ?(\d{1,2}|[a-z]{3,12})[\s)}]*"
)
_BASES = {
    name: str(n) for n, name in enumerate(["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], 2)
}
_CLOCK = re.compile(r"\d{1,2}:\d\d(?: ?[ap]\.?m)?", re.IGNORECASE)
_FRACTION = re.compile(r"-?\d+(?:/\d+)?")
_SIMPLE_NAME = re.compile(r"(?:\\[A-Za-z]+ ?)?[A-Za-z]{1,3}(?:_ ?\{?\w+\}?)?'*(?: ?\([A-Za-z, ]+\))?")
_COMMAND = re.compile(r"\\(?:begin|end|text|mathbb|mathcal)\{[^{}]*\}|\\[A-Za-z]+")
_APPROXIMATELY = re.compile(r"\\approx(?![A-Za-z])|≈")
_CONGRUENT = re.compile(r"\\equiv(?![A-Za-z])")
_LETTER = re.compile("[A-Za-z]")
_SEVERAL = re.compile(r"[<>,;]|\\(?:le|ge|ne)(?![A-Za-z])| (?:or|and) ")
_BUILDER = re.compile(r"\\\{ ?[A-Za-z] ?[|:] ?(.*)\\\}")
_SEVERAL_VALUES = re.compile(r"[<>]|\\(?:pm|mp|le|ge|ne|in|cup|emptyset|\{)")
_IN_BRACKETS = re.compile(r"\([^()]*\)|\{[^{}]*\}")
_NO_TERM = re.compile(r"\d \.?\d|!!|\?")


def same(expected: str, found: str) -> bool:
    """Whether ``found`` says what the published answer ``expected`` says."""
    if len(sides := _APPROXIMATELY.split(found)) > 1:
        return any(same(expected, side) for side in sides)
    one, other = _without_names(*(_BUILDER.sub(r"\1", tidy(side)) for side in (expected, found)))
    if not one or not other or _other_unit(one, other):
        return False
    other = _point(other) if one.startswith("(") else other
    if squeezed(one) == squeezed(other):
        return True
    forms = form(one), form(other)
    if None not in forms or any(side and not _FRACTION.fullmatch(side) for side in forms):
        return forms[0] == forms[1] or _in_percent(one, other)
    if is_words(one) or is_words(other):
        return folded(one) == folded(other)
    one, other = _mathematics(one), _mathematics(other)
    return _comparable(one, other) and algebra.equal(one, other)


def form(text: str) -> str | None:
    """The one form of a tidied number, with its base if it names one, or of a time of day; None for anything else."""
    bare = plain(text)
    if (based := _BASED.fullmatch(bare)) and (base := _BASES.get(based[2], based[2])).isdigit():
        return f"{based[1].lstrip('0') or '0'} in base {base}"
    if _CLOCK.fullmatch(bare):
        return bare.lower().replace(".", "").replace(" ", "")
    value = _number(text)
    return None if value is None else str(value)


def squeezed(text: str) -> str:
    """Without spaces, but for those between digits: ``3 1/2`` is not ``31/2``."""
    return re.sub(r"(?<!\d) +| +(?!\d)", "", text)


def _point(text: str) -> str:
    """``x = 5, y = -2`` as ``(5, -2)``, if the names are in the order of the alphabet."""
    parts = [part.split("=") for part in re.split(",| and ", text)]
    names = [part[0].strip() for part in parts]
    if len(parts) < 2 or not all(len(part) == 2 and re.fullmatch("[A-Za-z]", part[0].strip()) for part in parts):
        return text
    return f"({','.join(part[1] for part in parts)})" if names == sorted(set(names)) else text


def _number(text: str) -> Fraction | None:
    return number(plain(without_unit(text)))


def _other_unit(one: str, other: str) -> bool:
    """Whether both sides name units, and not the same ones."""
    first, second = units(one), units(other)
    return first is not None and second is not None and first != second


def _in_percent(one: str, other: str) -> bool:
    """Whether one side alone is in percent, and is the other side as a share of one."""
    if "%" in other:
        one, other = other, one
    percent, share = _number(one), _number(other)
    return "%" in one and "%" not in other and share is not None and percent == share * 100


def _without_names(expected: str, found: str) -> tuple[str, str]:
    """Both sides without the name in front of an equals sign, unless they name different things."""
    name, value = _named(expected)
    other_name, other_value = _named(found)
    if name and other_name:
        return (value, other_value) if squeezed(name) == squeezed(other_name) else (expected, found)
    if name and not _SIMPLE_NAME.fullmatch(name):
        return expected, found
    return value, other_value


def _named(text: str) -> tuple[str, str]:
    """What an equation is about, and what it comes to; no name for what is no equation or several ones."""
    name, sign, value = _CONGRUENT.sub("=", text).rpartition("=")
    if not sign or _SEVERAL.search(text):
        return "", text
    if re.fullmatch(r" ?[A-Za-z] ?", value) and not _LETTER.search(name):  # 5 = x
        name, value = value, name
    return name.strip(), value.strip()


def _comparable(one: str, other: str) -> bool:
    """Whether math-verify can tell them apart: it looks at neither case nor the brackets of a set."""
    letters = [set(re.findall("[A-Za-z]", _COMMAND.sub(" ", text))) for text in (one, other)]
    if {letter.swapcase() for letter in letters[0] - letters[1]} & letters[1]:
        return False
    if _named(one)[0] and "=" not in other:
        return False
    if any(side.startswith(r"\{") for side in (one, other)) and any(side[0] in "([" for side in (one, other)):
        return False
    if _is_list(other) and not (_is_list(one) or _SEVERAL_VALUES.search(one)):
        return False
    return not any(_NO_TERM.search(text) for text in (one, other))


def _is_list(text: str) -> bool:
    return "," in _IN_BRACKETS.sub("", text) and number(text) is None


def _mathematics(text: str) -> str:
    """What math-verify is given: no units, commas for "and" and "or"."""
    return re.sub(r",? (?:and|or) ", ", ", without_unit(text))
