r"""One way of writing for what LaTeX and models write in many ways, and the words around it.

``tidy`` leaves the mathematics as it is and takes away how it looks: fonts, sizes, spaces, dollar and degree signs.
"""

from __future__ import annotations

import re
import unicodedata

LONGEST = 1000  # characters of an answer; nothing that is published as one comes near
_BOX = r"\\(?:boxed|fbox|framebox)\*?\s*(?:\[[^\[\]{}]*\]\s*)*"
_BRACES = re.compile(rf"{_BOX}\{{|\\.|[{{}}]", re.DOTALL)
_BARE_BOX = re.compile(rf"{_BOX}(\d+(?:\.\d+)?)")

_UNICODE = str.maketrans(
    {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "π": r"\pi "}
    | {"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv ", "±": r"\pm ", "∞": r"\infty "}
    | {"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "√": r"\sqrt ", "°": r"^\circ ", "′": "'"}
    | {"½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}"}
    | {power: f"^{n}" for n, power in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
    | {index: f"_{n}" for n, index in enumerate("₀₁₂₃₄₅₆₇₈₉")}
)
_RADICAL = re.compile(r"√\s*(\d+|\([^()]*\))")
_GROUP = r"\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|tt|normal)?|mbox)" + _GROUP)
_FONT = re.compile(
    r"\\(?:boldsymbol|bm|math(?:bf|rm|it)|operatorname\*?|underline"
    rf"|(?:text)?color\s*\{{\w+\}}){_GROUP}"
)
_OLD_FONT = re.compile(r"\{\s*\\(bf|rm)(?![A-Za-z])")
_NAME = re.compile(r"(?<![\\A-Za-z])(sqrt|pi|sin|cos|tan|log|ln|infty|infinity)(?![A-Za-z])")
_ANY_COMMAND = re.compile(r"\\([A-Za-z]+)")
_SYNONYMS = (
    dict.fromkeys(["quad", "qquad"], " ")
    | dict.fromkeys(["dfrac", "tfrac", "cfrac"], r"\frac")
    | dict.fromkeys(["leq", "leqslant"], r"\le ")
    | dict.fromkeys(["geq", "geqslant"], r"\ge ")
    | {"mid": "|", "neq": r"\ne ", "lt": "<", "gt": ">", "langle": "(", "rangle": ")"}
    | {"varnothing": r"\emptyset ", "degree": r"^\circ "}
)
_UNSEEN = re.compile(r"\\(?:left|right)\s*\.|\\color\s*\{\w+\}")
_SIZES = "left|right|displaystyle|textstyle|math(?:bf|rm)|boldsymbol|large|hline|[bB]igg?[lmr]?"
_LOOKS: list[tuple[re.Pattern[str], str]] = [
    (re.compile(rf"\\(?:{_SIZES})(?![A-Za-z])"), ""),
    (re.compile(r"\\hspace\*?\{[^{}]*\}|~|\\text\{\s*\}"), " "),
    (re.compile(r"!="), r"\\ne "),
    (re.compile(r"\^\s*\{?\s*(?:\^\s*)?\\circ\s*\}?"), " "),
    (re.compile(r"\\?\$|[€£¥¢`]|\*\*|\\[()\[\]]"), ""),
    (re.compile(r"\\%|(?<![A-Za-z])(?:percent|percentage|pct)(?![A-Za-z])"), "%"),
    (re.compile(r"\{([,;])\}"), r"\1"),
    (re.compile(r"\\log ?_ ?(\w)"), r"\\log_{\1}"),
    (re.compile(r"\\sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
]
_ROWS = re.compile(r"\\begin\s*\{(?:[pbBvV]?matrix|array|cases|aligned)\*?\}")
_SPACING = re.compile(r"(?:\\\\\s*|\\cr(?![A-Za-z]))+(\[[^\[\]]*[a-z]{2}\s*\])?|(?<=,)\\! *|\\[,;:! \n]|\\(?=\s|$)")
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z({\[)}\]%,])")
_ARGUMENTS = {"frac": 2, "binom": 2, "sqrt": 1}
_COMMAND = re.compile(r"\\(frac|binom|sqrt)(?![A-Za-z])(\s*\[[^\[\]]*\])?")
_TOKEN = re.compile(r"\s*(\\[A-Za-z]+|[^\s{}\\])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_OUTER_BRACES = re.compile(r"\{([^{}]*)\}", re.DOTALL)

_LABEL = re.compile(
    r"^(?:\\text\{)?\s*(?:the\s+)?(?:(?:final|correct)\s+)?(?:answer|ans)\s*(?:is\b|[:=])\s*\}?\s*", re.IGNORECASE
)
# Behind an answer these begin what is no part of it: "k\pi, where k is an integer", "2, not 3".
_ASIDE = re.compile(
    r"(?<=[^\s,]),? *(?:\\text\{)? *(?:, ?(?:not|rather than|as)|\(?(?:because|since|where|i\.e\.)"
    r"|\((?:about|approximately))(?![A-Za-z]).*",
    re.DOTALL,
)
_WORDS = re.compile(r"[A-Za-z0-9 '.,():&-]*[A-Za-z][A-Za-z0-9 '.,():&-]*")
_ARTICLE = re.compile(r"^(?:an?|the) (?=\w{3})")
_LONG_WORD = re.compile(r"[A-Za-z]{4}")
_NO_WORD = re.compile(r"[^A-Za-z0-9]+")
_UNIT_WORD = r"(?:[A-Za-z]{3,}|[ap]\.?m|[ckmd]m|mi|ft|in|yd|kg|mg|lb|oz|hr|mL|(?<= )[mghsL])\.?"
_POWER = r"(?:\s*\^\s*\{?\s*\d\s*\}?)?"
_UNIT = re.compile(
    r"(.*(?:[\d)}%]|\\pi))\s*"
    rf"((?:\\text\s*\{{[^{{}}]*\}}{_POWER}[\s/]*)+|(?<=[\d\s]){_UNIT_WORD}{_POWER}(?:[\s/]+{_UNIT_WORD}{_POWER})*)\.?",
    re.DOTALL,
)
_UNITS = {
    name: names.split()[0]
    for names in (
        *("mm millimeter millimetre", "cm centimeter centimetre", "m meter metre", "km kilometer kilometre"),
        *("in inch inche", "ft foot feet", "yd yard", "mi mile", "g gram", "kg kilogram kilo", "lb pound", "oz ounce"),
        *("s sec second", "min minute", "h hr hour", "day", "week", "month", "year", "am", "pm", "cent", "dollar"),
        *("2 square sq", "3 cubic"),
    )
    for name in names.split()
}
# Behind a number these are no unit: "2 million", "5 or more", "3 squared".
CALCULATING_WORD = re.compile(
    r"(?<![A-Za-z])(?:or|and|not|to|plus|minus|times|over|divided|choose|squared|cubed|factorial|hundred"
    r"|thousand|million|billion|trillion|dozen)(?![A-Za-z])",
    re.IGNORECASE,
)


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
    for bare in _BARE_BOX.finditer(text, max(last, 0)):
        contents = bare[1]
    return contents


def tidy(answer: str) -> str:
    r"""An answer without boxes, fonts, sizes, spacing, ``$``, degree signs and the full stop behind it.

    Words keep their ``\text{...}``, which tells them from products of letters. Nothing is left of what is too long.
    """
    text = last_boxed(answer) or answer
    if len(text) > LONGEST:
        return ""
    text = _RADICAL.sub(r"\\sqrt{\1}", text).translate(_UNICODE)
    text = unicodedata.normalize("NFKC", text)
    if not _ROWS.search(text):
        text = _DOUBLED.sub(r"\\", text)
    text = _SPACING.sub(_spacing, text)
    text = _OLD_FONT.sub(r"\\math\1{", text)
    for _ in range(3):  # fonts lie in one another
        text = _TEXT.sub(_words_of, _FONT.sub(_font_of, text))
    text = _UNSEEN.sub("", _NAME.sub(r"\\\1", text))
    text = _ANY_COMMAND.sub(lambda found: _SYNONYMS.get(found[1], found[0]), text)
    for pattern, form in _LOOKS:
        text = pattern.sub(form, text)
    text = _ASIDE.sub(_closing, _LABEL.sub("", _with_braces(" ".join(text.split()))))
    return _without_outer_braces(_stripped(text))


def plain(text: str) -> str:
    r"""A tidied answer with its ``\text{...}`` as bare words."""
    return _stripped(" ".join(_TEXT.sub(r" \1 ", text).split()))


def is_words(text: str) -> bool:
    """Whether a tidied answer is words and no mathematics: ``\\text{...}`` alone, or with a word of four letters."""
    bare = plain(text)
    return bool(_WORDS.fullmatch(bare)) and bool(_TEXT.fullmatch(text) or _LONG_WORD.search(bare))


def folded(text: str) -> str:
    """A tidied answer's words in one form; the case of a single letter stays."""
    bare = " ".join(_NO_WORD.sub(" ", plain(text)).split())
    return _ARTICLE.sub("", bare.casefold()) if len(bare) > 1 else bare


def without_unit(text: str) -> str:
    """A tidied answer without the unit behind its mathematics."""
    return _with_unit(text)[0]


def units(text: str) -> list[str] | None:
    """The units behind a tidied answer, in one form; None if there are none, or unknown ones."""
    words = re.findall(r"[a-z]+|\d", plain(_with_unit(text)[1].replace(".", "")).lower())
    known = [_UNITS.get(word) or _UNITS.get(word.removesuffix("s"), "") for word in words if word != "per"]
    return sorted(known) if known and all(known) else None


def _with_unit(text: str) -> tuple[str, str]:
    found = _UNIT.fullmatch(text)
    return (text, "") if found is None or CALCULATING_WORD.search(found[2]) else (found[1].strip(), found[2])


def _stripped(text: str) -> str:
    """Without punctuation around it; the point in front of a digit stays."""
    text = text.rstrip(" .,;:").lstrip(" ,;:")
    return text if re.match(r"\.\d", text) else text.lstrip(" .,;:")


def _spacing(found: re.Match[str]) -> str:
    if found[0].startswith((r"\\", r"\cr")):
        return r"\\ "
    return "" if found[0].startswith(r"\!") else " "


def _closing(found: re.Match[str]) -> str:
    """The brace in what is taken away that closes one before it."""
    return "}" * max(0, found[0].count("}") - found[0].count("{"))


def _words_of(found: re.Match[str]) -> str:
    words = _LABEL.sub("", found[1].strip())
    if words.lower() in ("and", "or", "infinity"):
        return f" {words} "
    if not re.fullmatch(r"[^=^\\]*[A-Za-z][^=^\\]*", words) or re.fullmatch(r"[A-Z](?:, ?[A-Z])+", words):
        return words
    return rf"\text{{{words}}}"


def _font_of(found: re.Match[str]) -> str:
    is_word = re.fullmatch(r"\s*[A-Za-z]{2,}\s*", found[1]) or (
        "mathrm" in found[0] and re.fullmatch("[A-Zabcf-hj-z]", found[1])
    )
    return rf"\text{{{found[1]}}}" if is_word else f" {found[1]} "


def _with_braces(text: str) -> str:
    r"""``\frac12`` as ``\frac{1}{2}``, likewise for roots and binomials; from the last one to the first."""
    for command in reversed(list(_COMMAND.finditer(text))):
        rest, arguments = text[command.end() :], ""
        for _ in range(_ARGUMENTS[command[1]]):
            argument, rest = _first_argument(rest)
            arguments += argument
        text = f"{text[: command.start()]}\\{command[1]}{(command[2] or '').strip()}{arguments}{rest}"
    return text


def _first_argument(text: str) -> tuple[str, str]:
    """The argument that ``text`` begins with, in braces, and what follows it."""
    if text.lstrip().startswith("{"):
        end = _group_end(text, 0)
        return text[:end].lstrip(), text[end:]
    token = _TOKEN.match(text)
    if token is None:
        return "", text
    end = token.end()
    while token[1] in (r"\sqrt", r"\frac", r"\binom") and text[end : end + 1] == "{":
        end = _group_end(text, end)
    return f"{{{text[:end].strip()}}}", text[end:]


def _group_end(text: str, start: int) -> int:
    """Where the group ends that opens at ``start``; the end of the text if it is never closed."""
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.end()
    return len(text)


def _without_outer_braces(text: str) -> str:
    while (found := _OUTER_BRACES.fullmatch(text)) is not None:
        text = found[1].strip()
    return text
