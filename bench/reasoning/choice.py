"""The letter that an answer to a multiple-choice question names: one letter and its label, or nothing."""

from __future__ import annotations

import re

from bench.reasoning.latex import plain, tidy

_NAMED = re.compile(
    r"(?:(?:the|my|correct|right|best|final|answer|option|choice|is|letter)\b[\s:=]*)+(?=[(\[{]*[A-Da-d](?![A-Za-z]))",
    re.IGNORECASE,
)
_BRACKETED = re.compile(r"[(\[{]\s*([A-Da-d])\s*[)\]}]\s*[.:)]?(.*)", re.DOTALL)
_MARKED = re.compile(r"([A-Da-d])\s*[).:](.*)", re.DOTALL)
_ALONE = re.compile(r"([A-Da-d])()")
# "C, because ...", "C is right", "C (the third)", "C - the third": a letter, and then what cannot be its continuation.
_EXPLAINED = re.compile(
    r"([A-D])(?:,? (?:as|which|is (?:the )?(?:correct|right|best|answer))\b"
    r"|\s+(?=\()|\s+[-:—]{1,3}\s+(?=[A-Za-z0-9\\]{2}))(.*)",
    re.DOTALL,
)
_NOT_THE_OTHER = re.compile(r",? \(?(?:and )?(?:not|rather than) [(\[]?[A-D][)\]]?\)?$")
_ANOTHER = re.compile(
    r"[\s(]*[,;]?\s*(?:and|or|nor|vs)\b|\s*[/&+]|\s*[,;]\s*[(\[]?[A-D](?![\w'^-])|[\s(\[]*[A-D][\s)\].:]*$"
)
_OTHER_LABEL = re.compile(r"[(\[]\s*[A-D]\s*[)\]]|(?<![\w(])[A-D]\s*\)")


def letter(answer: str) -> str | None:
    """The one choice, A to D, that an answer names; None for several, and for words that begin with such a letter."""
    text = _NOT_THE_OTHER.sub("", _unquoted(plain(tidy(answer))))
    if named := _NAMED.match(text):
        text = _unquoted(text[named.end() :])
    for form in (_BRACKETED, _MARKED, _ALONE, _EXPLAINED):
        if found := form.fullmatch(text):
            chosen, label = found[1].upper(), found[2]
            return None if _names_another(label, chosen) else chosen
    return None


def _names_another(label: str, chosen: str) -> bool:
    others = (found[0].strip("()[] ") for found in _OTHER_LABEL.finditer(label))
    return _ANOTHER.match(label) is not None or any(other != chosen for other in others)


def _unquoted(text: str) -> str:
    text = text.strip(' "')
    return text[1:-1].strip() if text[:1] == text[-1:] and text[:1] in ("'", "*", "_") else text
