"""Problems for the reasoning benchmark: files that the user supplies, and a small arithmetic set made from a seed."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE_KINDS = ("aime", "math500", "gpqa")
BUILT_IN = "arithmetic"
LETTERS = "ABCD"
_HOW = "Reason step by step, and put your final answer"


class ReasoningError(RuntimeError):
    """The benchmark cannot go on; the message is one line with the fix."""


class _Malformed(ValueError):
    """What is wrong with one object, and the fix; the file and the line are added by the loader."""


@dataclass(frozen=True)
class Problem:
    """One question as it is sent, with the answer that is right."""

    id: str
    prompt: str
    expected: str


def digest(problems: list[Problem]) -> str:
    """sha256 over everything that is asked and expected."""
    return hashlib.sha256(json.dumps([asdict(problem) for problem in problems]).encode()).hexdigest()


def load(path: Path, kind: str, seed: int) -> list[Problem]:
    """The problems of a JSONL file; blank lines are skipped, keys that the kind does not know are ignored.

    Args:
        kind: one of ``FILE_KINDS``.
        seed: orders the choices of ``gpqa``, differently for each problem.

    Raises:
        ReasoningError: the file cannot be read, or a line of it cannot be used.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ReasoningError(f"--data {path} cannot be read: {error}; fix: name a JSONL file in UTF-8") from error
    problems: dict[str, Problem] = {}
    for line, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            row = _object(text)
            problem_id = _id(row, f"{kind}-{line}")
            if problem_id in problems:
                raise _Malformed(f'"id" {problem_id!r} stands in an earlier line too; fix: give each problem its own')
            problems[problem_id] = _READERS[kind](row, problem_id, seed)
        except _Malformed as error:
            raise ReasoningError(f"{path}, line {line}: {error}") from error
    if not problems:
        raise ReasoningError(f"{path} holds no problems; fix: one JSON object per line")
    return list(problems.values())


def _object(text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Malformed(f"not JSON ({error}); fix: one JSON object per line") from error
    if not isinstance(row, dict):
        raise _Malformed(f"{_show(row)} is not an object; fix: one JSON object per line")
    return row


def _id(row: dict[str, Any], default: str) -> str:
    value = row.get("id", default)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise _Malformed(f'"id" is {_show(value)}; fix: a string, a whole number, or no id at all')
    return str(value)


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        state = f"is {_show(value)}" if key in row else "is missing"
        raise _Malformed(f'"{key}" {state}; fix: a string that is not empty')
    return value.strip()


def _aime(row: dict[str, Any], problem_id: str, _seed: int) -> Problem:
    answer = row.get("answer")
    digits = str(answer).strip() if isinstance(answer, str | int) and not isinstance(answer, bool) else ""
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 3):
        state = f"is {_show(answer)}" if "answer" in row else "is missing"
        raise _Malformed(f'"answer" {state}; fix: a whole number from 0 to 999')
    prompt = f"{_text(row, 'problem')}\n\n{_HOW}, a whole number from 0 to 999, within \\boxed{{}}."
    return Problem(problem_id, prompt, str(int(digits)))


def _math500(row: dict[str, Any], problem_id: str, _seed: int) -> Problem:
    return Problem(problem_id, f"{_text(row, 'problem')}\n\n{_HOW} within \\boxed{{}}.", _text(row, "answer"))


def _gpqa(row: dict[str, Any], problem_id: str, seed: int) -> Problem:
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(choices, list) or len(choices) != 4 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise _Malformed(f'"choices" is {_show(choices)}; fix: a list of four strings that are not empty')
    if isinstance(answer, str) and len(answer) == 1 and answer in LETTERS:
        right = LETTERS.index(answer)
    elif type(answer) is int and 0 <= answer <= 3:
        right = answer
    else:
        raise _Malformed(f'"answer" is {_show(answer)}; fix: "A", "B", "C", "D", or an index from 0 to 3')
    order = list(range(4))
    random.Random(f"{seed}/{problem_id}").shuffle(order)
    shown = "\n".join(f"{letter}) {choices[n].strip()}" for letter, n in zip(LETTERS, order, strict=True))
    prompt = f"{_text(row, 'question')}\n\n{shown}\n\n{_HOW}, the letter of the right choice, within \\boxed{{}}."
    return Problem(problem_id, prompt, LETTERS[order.index(right)])


_READERS: dict[str, Callable[[dict[str, Any], str, int], Problem]] = {
    "aime": _aime,
    "math500": _math500,
    "gpqa": _gpqa,
}


def _show(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


# The built-in set


def arithmetic(count: int, seed: int) -> list[Problem]:
    """``count`` short problems of five kinds in turn, the same ones for the same seed; answers are whole numbers.

    Four kinds take one step, the fifth three: a model of 135 million parameters answers some, a larger one all.
    """
    kinds = (_sum, _difference, _product, _sequence, _shopping)
    problems = []
    for index in range(count):
        text, answer = kinds[index % len(kinds)](random.Random(f"{seed}/{index}"))
        prompt = f"{text}\n\n{_HOW}, a whole number, within \\boxed{{}}."
        problems.append(Problem(f"{BUILT_IN}-{index + 1}", prompt, str(answer)))
    return problems


def _sum(draw: random.Random) -> tuple[str, int]:
    one, other = draw.randint(11, 69), draw.randint(11, 69)
    return f"What is {one} + {other}?", one + other


def _difference(draw: random.Random) -> tuple[str, int]:
    had, gave = draw.randint(30, 60), draw.randint(3, 25)
    return f"Ada has {had} stamps and gives {gave} of them to Ben. How many stamps does Ada have left?", had - gave


def _product(draw: random.Random) -> tuple[str, int]:
    boxes, eggs = draw.randint(3, 12), draw.randint(3, 12)
    return f"There are {boxes} boxes with {eggs} eggs each. How many eggs are there?", boxes * eggs


def _sequence(draw: random.Random) -> tuple[str, int]:
    first, step = draw.randint(1, 20), draw.randint(2, 9)
    shown = ", ".join(str(first + step * n) for n in range(4))
    return f"A sequence begins {shown} and goes on by the same rule. What is its next term?", first + step * 4


def _shopping(draw: random.Random) -> tuple[str, int]:
    pens, books, pen, book = draw.randint(2, 5), draw.randint(2, 5), draw.randint(2, 5), draw.randint(6, 12)
    text = (
        f"A pen costs {pen} coins and a book costs {book} coins. What do {pens} pens and {books} books cost together?"
    )
    return text, pens * pen + books * book
