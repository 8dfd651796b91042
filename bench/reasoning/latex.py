r"""The answer that a text gives, in one way of writing for what models write in many ways."""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST = 1000  # characters of an answer; nothing that is published as one comes near
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_PHRASE = re.compile(
    r"\b(?:answer|(?:correct|right|best) (?:option|choice))[*_ \t]*"
    r"(?:(?:is|(?:must|should|would) be)\b(?: (?:therefore|thus|equal to|given by)\b)*|:|\**\s*$)[*_\s:]*",
    re.IGNORECASE | re.MULTILINE,
)
_DISPLAY = re.compile(r"(?:\\\[|\$\$)\s*(.*?)\s*(?:\\\]|\$\$)", re.DOTALL)
# Up to the end of a sentence or line; what stands in $...$ ends no sentence.
_STATEMENT = re.compile(r"(?:\$[^$\n]*\$|[^\n.!?]|[.!?](?![\s*_]|$))+")
_NUMBER = r"-?(?:\d{1,3}(?:[, ]\d{3})+|\d{1,50})(?:\.\d{0,50})?|-?\.\d{1,50}"
_LAST_NUMBER = re.compile(rf"(?<![\w.])({_NUMBER})(?!\w)[^\d]*$")
_LAST_BOLD = re.compile(r"\*\*([^*\n]+)\*\*\s*$")

_GROUP = r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
_FONT = re.compile(
    rf"\\(?:(?:text|math)(?:bf|it|rm|normal)|text|mbox|boldsymbol|bm|(?:text)?color\s*\{{\w+\}}){_GROUP}"
)
_WORDS_BEHIND = re.compile(
    rf"(?<=[\w)}}])(?:\s|\\[,; ])*(?:\\(?:text|mbox)(?!\s*\{{[^{{}}]*illion){_GROUP}|\\mathrm\{{[a-z]{{2,}}\}})"
    r"(?:\s*\^\s*\{?\d\}?)?$"
)
_LOOKS = [
    (re.compile(pattern), form)
    for pattern, form in (
        (r"\\\\(?:\[[^\]]*\])?", r"\\\\ "),  # the end of a row
        (r"√\s*\(?(\w+)\)?|(?<!\\)\bsqrt\(([^()]*)\)", r"\\sqrt{\1\2}"),
        (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
        (r"\\varnothing", r"\\emptyset"),
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle)(?![A-Za-z])", ""),
        (r"\^\s*\{?\s*\\circ\s*\}?|°", ""),
        (r"\s*\b(?:degrees|percent)$|\\?\$|\\?%|\*\*|\\[()\[\]]", ""),
        (r",\\! ?", ","),
        (r"(?<!\\)\\[,;:! ]|\\q?quad(?![A-Za-z])|~", " "),
        (r"([_^])\s*\{(\w)\}", r"\1\2"),
        (r"^\s*\w\s*\\in(?![A-Za-z])", ""),
        (r"^(-?)(\d+) (\d+)/(\d+)$|^(-?)(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}$", r"\1\5(\2\6+\\frac{\3\7}{\4\8})"),
    )
]


def extract(text: str, kind: str) -> str | None:
    r"""The last ``\boxed{...}``, else what follows the last "answer is" or "Answer:", else, for arithmetic, the last
    number, and for gpqa the last line if it is in bold; None if there is none of them.

    What stands behind ``</think>`` goes before what stands in front of it.
    """
    thoughts, _, text = text.rpartition("</think>")
    return _extract(text, kind) or (_extract(thoughts, kind) if thoughts else None)


def _extract(text: str, kind: str) -> str | None:
    if boxed := last_boxed(text):
        return boxed
    text = text.replace(r"\boxed{}", "")  # the prompt's own words, repeated
    for phrase in reversed(list(_PHRASE.finditer(text))):
        said = text[phrase.end() : phrase.end() + 2 * LONGEST]
        found = _DISPLAY.match(said)
        statement = _STATEMENT.match(said)
        answer = found[1] if found else statement[0].strip(" \t*_`\"'") if statement else ""
        if answer.strip(" .\\[]()$"):
            return answer
    last = {"gpqa": _LAST_BOLD, "arithmetic": _LAST_NUMBER}.get(kind)
    found = last.search(text) if last else None
    return found[1].rstrip(".") if found else None


def last_boxed(text: str) -> str | None:
    r"""The contents of the last ``\boxed{...}`` that is closed and not empty."""
    opened: list[int | None] = []
    contents = None
    for token in _BRACES.finditer(text):
        if token[0] == "}":
            start = opened.pop() if opened else None
            if start is not None and (inside := text[start : token.start()].strip()):
                contents = inside
        elif token[0].endswith("{") and token[0] != r"\{":
            opened.append(token.end() if len(token[0]) > 1 else None)
    return contents


def tidy(answer: str) -> str:
    r"""An answer without boxes, fonts, sizes, spacing, ``$``, degree signs, words behind it and the full stop.

    Nothing is left of what is too long.
    """
    text = last_boxed(answer) or answer
    if len(text) > LONGEST:
        return ""
    text = _WORDS_BEHIND.sub("", text.strip(" $").rstrip("."))
    for _ in range(2):  # fonts lie in one another
        text = _FONT.sub(r" \1 ", text)
    for pattern, form in _LOOKS:
        text = pattern.sub(form, text)
    text = " ".join(text.split()).rstrip(" .,;:")
    return text if re.match(r"\.\d", text) else text.lstrip(" .,;:")


def number(text: str) -> Fraction | None:
    """The value of a whole or decimal number, with or without separated thousands; None for anything else."""
    return Fraction(re.sub("[, ]|[.]$", "", text)) if re.fullmatch(_NUMBER, text) else None
