"""Problems for the reasoning benchmark: files that the user supplies, and a small arithmetic set made from a seed."""

from __future__ import annotations

import csv
import fileinput
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.reasoning.latex import last_boxed, number, tidy

FILE_KINDS = ("aime", "math500", "gpqa")
BUILT_IN = "arithmetic"
LETTERS = "ABCD"
_ANSWER = {
    "aime": ", a whole number from 0 to 999,",
    "math500": "",
    "gpqa": ", the letter of the right choice,",
    BUILT_IN: ", a whole number,",
}


class ReasoningError(RuntimeError):
    """The benchmark cannot go on; the message is one line with the fix."""


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
    """The problems of a JSONL or CSV file of a kind of ``FILE_KINDS``; ``seed`` orders the choices of ``gpqa``.

    Raises:
        ReasoningError: the file cannot be read, or a line of it cannot be used.
    """
    problems: dict[str, Problem] = {}
    try:
        with fileinput.FileInput(path, encoding="utf-8-sig") as lines:
            for row in _csv_rows(lines) if path.suffix.lower() == ".csv" else _json_rows(lines):
                default = {"line": f"{kind}-{lines.filelineno()}"}
                problem_id = _text(row | default, "id", "unique_id", "record id", "line")
                if problem_id in problems:
                    raise ValueError(f"id {problem_id!r} stands in an earlier line too; fix: give each problem its own")
                problems[problem_id] = _problem(row, kind, problem_id, seed)
    except (OSError, UnicodeDecodeError) as error:
        fix = "name a JSONL or CSV file in UTF-8"
        raise ReasoningError(f"--data {path} cannot be read: {error}; fix: {fix}") from error
    except ValueError as error:
        raise ReasoningError(f"{path}, line {lines.filelineno()}: {error}") from error
    if not problems:
        raise ReasoningError(f"{path} holds no problems; fix: one JSON object per line, or CSV with a header")
    return list(problems.values())


def _json_rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The object of each line that is not blank; numbers are told as they are written."""
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON ({error}); fix: one JSON object per line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{_show(row)} is not an object; fix: one JSON object per line")
        yield {key.strip().lower(): value for key, value in row.items()}


def _csv_rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Each row by its header; empty cells are left out."""
    csv.field_size_limit(1 << 30)  # the library's own 131,072 characters are fewer than a problem may have
    try:
        for row in csv.DictReader(lines, strict=True):
            yield {key.strip().lower(): cell for key, cell in row.items() if key and cell}
    except csv.Error as error:
        raise ValueError(f"not CSV ({error}); fix: quote cells that hold commas or quotes") from error


def _text(row: dict[str, Any], *names: str) -> str:
    """What a row has under the first of ``names`` that it knows."""
    name = next((name for name in names if name in row), None)
    if name is None:
        keys, known = ", ".join(map(_show, row)), " or ".join(map(_show, names))
        raise ValueError(f"{_show(names[0])} is missing, the keys are {keys or 'none'}; fix: name it {known}")
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{_show(name)} is {_show(value)}; fix: a string that is not empty")
    return value.strip()


def _problem(row: dict[str, Any], kind: str, problem_id: str, seed: int) -> Problem:
    question = _text(row, "problem", "question")
    if kind == "gpqa":
        choices, right = _choices(row)
        order = list(range(4))
        random.Random(f"{seed}/{problem_id}").shuffle(order)
        shown = "\n".join(f"{letter}) {choices[n].strip()}" for letter, n in zip(LETTERS, order, strict=True))
        return Problem(problem_id, _prompt(f"{question}\n\n{shown}", kind), LETTERS[order.index(right)])
    answer = _text(row, "answer", "solution")
    answer = answer if "answer" in row else last_boxed(answer) or answer
    if kind == "aime":
        value = number(tidy(answer))
        if value is None or value.denominator != 1 or not 0 <= value <= 999:
            raise ValueError(f'"answer" is {_show(answer)}; fix: a whole number from 0 to 999')
        answer = str(value)
    return Problem(problem_id, _prompt(question, kind), answer)


def _prompt(question: str, kind: str) -> str:
    return f"{question}\n\nReason step by step, and put your final answer{_ANSWER[kind]} within \\boxed{{}}."


def _choices(row: dict[str, Any]) -> tuple[list[str], int]:
    """The four choices and the index of the right one, in GPQA's own columns or as a list with an answer."""
    if "correct answer" in row:
        return [_text(row, "correct answer"), *(_text(row, f"incorrect answer {n}") for n in (1, 2, 3))], 0
    choices = row.get("choices", row.get("options"))
    if not isinstance(choices, list) or len(choices) != 4 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise ValueError(f'"choices" is {_show(choices)}; fix: four strings, or GPQA\'s own "Correct Answer" and so on')
    answer = _text(row, "answer")
    if answer not in [*LETTERS, *"0123"]:
        raise ValueError(f'"answer" is {_show(answer)}; fix: "A", "B", "C", "D", or an index from 0 to 3')
    return choices, f"{LETTERS}0123".index(answer) % 4


def _show(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def arithmetic(count: int, seed: int) -> list[Problem]:
    """``count`` short problems of five kinds in turn, the same ones for the same seed; answers are whole numbers.

    Four kinds take one step, the fifth three: a model of 135 million parameters answers some, a larger one all.
    """
    drawn = (_drawn(index % 5, random.Random(f"{seed}/{index}").randint) for index in range(count))
    return [
        Problem(f"{BUILT_IN}-{place}", _prompt(question, BUILT_IN), str(answer))
        for place, (question, answer) in enumerate(drawn, 1)
    ]


def _drawn(kind: int, draw: Callable[[int, int], int]) -> tuple[str, int]:
    match kind:
        case 0:
            one, other = draw(11, 69), draw(11, 69)
            return f"What is {one} + {other}?", one + other
        case 1:
            had, gave = draw(30, 60), draw(3, 25)
            return (
                f"Ada has {had} stamps and gives {gave} of them to Ben. How many stamps does Ada have left?",
                had - gave,
            )
        case 2:
            boxes, eggs = draw(3, 12), draw(3, 12)
            return f"There are {boxes} boxes with {eggs} eggs each. How many eggs are there?", boxes * eggs
        case 3:
            first, step = draw(1, 20), draw(2, 9)
            shown = ", ".join(str(first + step * n) for n in range(4))
            return f"A sequence begins {shown} and goes on by the same rule. What is its next term?", first + step * 4
    pens, books, pen, book = draw(2, 5), draw(2, 5), draw(2, 5), draw(6, 12)
    costs = f"A pen costs {pen} coins and a book costs {book} coins."
    return f"{costs} What do {pens} pens and {books} books cost together?", pens * pen + books * book
