"""Problems for the reasoning benchmark: files that the user supplies, and a small arithmetic set made from a seed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.reasoning.latex import last_boxed, number, tidy

FILE_KINDS = ("aime", "math500", "gpqa")
BUILT_IN = "arithmetic"
LETTERS = "ABCD"
_HOW = "Reason step by step, and put your final answer"


class ReasoningError(RuntimeError):
    """The benchmark cannot go on; the message is one line with the fix."""


class _Malformed(ValueError):
    """What is wrong with one row, and the fix; the loader adds the file, and the line unless ``line`` says it."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


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
    """The problems of a JSONL or CSV file; blank lines are skipped, keys that the kind does not know are ignored.

    Args:
        kind: one of ``FILE_KINDS``.
        seed: orders the choices of ``gpqa``, differently for each problem.

    Raises:
        ReasoningError: the file cannot be read, or a line of it cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        fix = "name a JSONL or CSV file in UTF-8"
        raise ReasoningError(f"--data {path} cannot be read: {error}; fix: {fix}") from error
    problems: dict[str, Problem] = {}
    line = 1
    try:
        for line, row in _csv_rows(text) if path.suffix.lower() == ".csv" else _json_rows(text):
            problem_id = _id(row, f"{kind}-{line}")
            if problem_id in problems:
                raise _Malformed(f"id {problem_id!r} stands in an earlier line too; fix: give each problem its own")
            problems[problem_id] = _READERS[kind](row, problem_id, seed)
    except _Malformed as error:
        raise ReasoningError(f"{path}, line {error.line or line}: {error}") from error
    if not problems:
        raise ReasoningError(f"{path} holds no problems; fix: one JSON object per line, or CSV with a header")
    return list(problems.values())


def _json_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, part in enumerate(text.split("\n"), 1):
        if part.strip():
            yield line, _object(part, line)


def _csv_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row by its header, with the line that it ends in; empty cells are left out."""
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in rows:
            yield rows.line_num, {key: cell for key, cell in row.items() if key and cell}
    except csv.Error as error:
        raise _Malformed(
            f"not CSV ({error}); fix: quote cells that hold commas or quotes", rows.reader.line_num
        ) from error


def _object(text: str, line: int) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Malformed(f"not JSON ({error}); fix: one JSON object per line", line) from error
    if not isinstance(row, dict):
        raise _Malformed(f"{_show(row)} is not an object; fix: one JSON object per line", line)
    return row


def _find(row: dict[str, Any], *names: str) -> str:
    """The key of ``row`` that is one of ``names``, in any case."""
    keys = {key.strip().lower(): key for key in row}
    for name in names:
        if name in keys:
            return keys[name]
    found = ", ".join(map(_show, row)) or "none"
    raise _Malformed(f'"{names[0]}" is missing, the keys are {found}; fix: name it {" or ".join(map(_show, names))}')


def _id(row: dict[str, Any], default: str) -> str:
    try:
        key = _find(row, "id", "unique_id", "record id")
    except _Malformed:
        return default
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise _Malformed(f"{_show(key)} is {_show(value)}; fix: a string, a whole number, or no id at all")
    return str(value)


def _text(row: dict[str, Any], *names: str) -> str:
    key = _find(row, *names)
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise _Malformed(f"{_show(key)} is {_show(value)}; fix: a string that is not empty")
    return value.strip()


def _answer(row: dict[str, Any]) -> tuple[str, Any]:
    """The key and the value of the answer; where there is a solution only, what it has in its last box."""
    key = _find(row, "answer", "solution")
    value = row[key]
    return key, last_boxed(value) or value if key.strip().lower() == "solution" and isinstance(value, str) else value


def _aime(row: dict[str, Any], problem_id: str, _seed: int) -> Problem:
    question = _text(row, "problem", "question")
    key, answer = _answer(row)
    value = None
    if isinstance(answer, str | int | float) and not isinstance(answer, bool):
        value = number(tidy(str(answer)))
    if value is None or value.denominator != 1 or not 0 <= value <= 999:
        raise _Malformed(f"{_show(key)} is {_show(answer)}; fix: a whole number from 0 to 999")
    return Problem(problem_id, f"{question}\n\n{_HOW}, a whole number from 0 to 999, within \\boxed{{}}.", str(value))


def _math500(row: dict[str, Any], problem_id: str, _seed: int) -> Problem:
    question = _text(row, "problem", "question")
    key, answer = _answer(row)
    if not isinstance(answer, str) or not answer.strip():
        raise _Malformed(f"{_show(key)} is {_show(answer)}; fix: a string that is not empty")
    return Problem(problem_id, f"{question}\n\n{_HOW} within \\boxed{{}}.", answer.strip())


def _gpqa(row: dict[str, Any], problem_id: str, seed: int) -> Problem:
    question = _text(row, "question", "problem")
    choices, right = _choices(row)
    order = list(range(4))
    random.Random(f"{seed}/{problem_id}").shuffle(order)
    shown = "\n".join(f"{letter}) {choices[n].strip()}" for letter, n in zip(LETTERS, order, strict=True))
    prompt = f"{question}\n\n{shown}\n\n{_HOW}, the letter of the right choice, within \\boxed{{}}."
    return Problem(problem_id, prompt, LETTERS[order.index(right)])


def _choices(row: dict[str, Any]) -> tuple[list[str], int]:
    """The four choices and the index of the right one, in GPQA's own columns or as a list with an answer."""
    if any(key.strip().lower() == "correct answer" for key in row):
        return [_text(row, "correct answer"), *(_text(row, f"incorrect answer {n}") for n in (1, 2, 3))], 0
    key = _find(row, "choices", "options", "correct answer")
    choices = row[key]
    if not isinstance(choices, list) or len(choices) != 4 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise _Malformed(f"{_show(key)} is {_show(choices)}; fix: a list of four strings that are not empty")
    key = _find(row, "answer")
    answer = row[key]
    if isinstance(answer, str) and len(answer) == 1 and answer in LETTERS:
        return choices, LETTERS.index(answer)
    if type(answer) is int and 0 <= answer <= 3:
        return choices, answer
    raise _Malformed(f'{_show(key)} is {_show(answer)}; fix: "A", "B", "C", "D", or an index from 0 to 3')


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
