"""The answer that a text gives, as written there."""

from __future__ import annotations

import re

from bench.reasoning.choice import letter
from bench.reasoning.latex import last_boxed
from bench.reasoning.number import last_in

_IS = r"(?:(?:is|(?:must|should|would|will) be)\b(?: (?:therefore|thus|then|simply|equal to|given by)\b)*|[:=])[*_\s:]*"
_PHRASE = re.compile(
    rf"\banswer\b(?: to (?:the|this)(?: \w+){{1,3}})?[*_ \t]*{_IS}"
    r"|^[#*_ \t]*(?:the )?(?:final |correct )?answer[*_ \t]*$\s*",
    re.IGNORECASE | re.MULTILINE,
)
_CHOICE_PHRASE = re.compile(
    rf"\b(?:correct|right|best) (?:option|choice)\b[*_ \t]*{_IS}"
    r"|\b(?:answer|option|choice) (?=[(*]*[A-D][)*]* is (?:the )?(?:correct|right|best)(?: \w+)?(?:[.!,*]|$| because))",
    re.IGNORECASE | re.MULTILINE,
)
_STATEMENT_END = re.compile(r"[.!?](?:[*_\s]|$)|\n|$")
# What stands between a phrase and mathematics on lines of its own: "The answer is given by".
_LEAD_IN = r"[A-Za-z ,:*_]{0,60}\s*"
_DISPLAYS = [
    re.compile(_LEAD_IN + begin + r"\s*(.*?)\s*" + end, re.DOTALL)
    for begin, end in (
        (r"\\\[", r"\\\]"),
        (r"\$\$", r"\$\$"),
        (r"\\begin\{((?:equation|align|gather|displaymath|math)\*?)\}", r"\\end\{\1\}"),
        (r"```\w*\n", r"```"),
    )
]
_INLINE = re.compile(r"\$[^$\n]*\$|\\\([^\n]*?\\\)")
_BOLD = re.compile(r"\*\*[^*]+\*\*\.?")
_LONGEST = 2000  # characters of a statement
_DELIMITERS = " \\[]()$"
_AROUND = " \t\r*_`\"'"


def extract(text: str, kind: str) -> str | None:
    r"""The last ``\boxed{...}``, else what follows the last "answer is" or "Answer:", else, for arithmetic, the last
    number, and for gpqa a choice at the end; None if there is none of them.

    What stands behind ``</think>`` goes before what stands in front of it.
    """
    thoughts, _, text = text.rpartition("</think>")
    return _extract(text, kind) or (_extract(thoughts, kind) if thoughts else None)


def _extract(text: str, kind: str) -> str | None:
    if boxed := last_boxed(text):
        return boxed
    text = text.replace(r"\boxed{}", "")  # the prompt's own words, repeated
    phrases = list(_PHRASE.finditer(text))
    if kind == "gpqa":
        phrases = sorted([*phrases, *_CHOICE_PHRASE.finditer(text)], key=lambda phrase: phrase.end())
    for phrase in reversed(phrases):
        said = text[phrase.end() : phrase.end() + _LONGEST]
        if answer := _displayed(said) or _statement(said):
            return answer
    if kind == "gpqa":
        return _choice_at_the_end(text)
    return last_in(text) if kind == "arithmetic" else None


def _choice_at_the_end(text: str) -> str | None:
    """The last line if it is a choice in bold, or the only line if it is a choice."""
    before, _, last = text.strip().rpartition("\n")
    return last if (not before or _BOLD.fullmatch(last)) and letter(last) else None


def _displayed(text: str) -> str | None:
    """The mathematics on lines of its own that a statement leads to."""
    for display in _DISPLAYS:
        if found := display.match(text):
            return str(found[found.lastindex or 0]).strip(_AROUND)
    return None


def _statement(text: str) -> str:
    """What is said up to the end of the sentence or of the line; full stops within ``$...$`` end no sentence."""
    end = 0
    while stop := _STATEMENT_END.search(text, end):
        inline = next((part for part in _INLINE.finditer(text) if part.end() > stop.start()), None)
        if inline is None or inline.start() > stop.start():
            statement = text[: stop.start()].strip(_AROUND)
            return statement if statement.strip(_DELIMITERS) else ""
        end = inline.end()
    return ""
