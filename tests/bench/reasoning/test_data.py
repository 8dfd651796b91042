"""The reasoning benchmark's problems: files of each kind, and generated ones."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from bench.reasoning.data import ReasoningError, arithmetic, load

from .conftest import write

COLUMNS: dict[str, object] = {
    "Question": "Which?\n",
    "Correct Answer": "three\n",
    "Incorrect Answer 1": "one",
    "Incorrect Answer 2": 'two, "2"\n',
    "Incorrect Answer 3": "four\nlines",
    "Subdomain": "Chemistry",
}
LIST: dict[str, object] = {"question": "Which?", "choices": ["one", 'two, "2"', "three", "four\nlines"]}
AIME: dict[str, object] = {"problem": "P", "answer": 5}

PUBLISHED = {
    "capitals": ("aime", {"ID": "2024-I-1", "Problem": "P", "Solution": "...", "Answer": 204}, "2024-I-1", "204"),
    "text": ("aime", {"id": 9, "question": "P", "answer": "073"}, "9", "73"),
    "degrees": ("aime", {"question": "P", "answer": r"336^\circ"}, "aime-2", "336"),
    "float": ("aime", {"problem": "P", "answer": 204.0}, "aime-2", "204"),
    "solution": ("aime", {"problem": "P", "solution": r"So \boxed{204}."}, "aime-2", "204"),
    "math": ("math500", {"problem": "P", "solution": "s", "answer": "p - q", "unique_id": "t/1"}, "t/1", "p - q"),
    "math-solution": ("math500", {"problem": "P", "solution": r"So \boxed{\frac{1}{2}}."}, "math500-2", r"\frac{1}{2}"),
    "line-separator": ("math500", {"problem": "P\n\u2028Q", "answer": "x"}, "math500-2", "x"),
}


@pytest.mark.parametrize(("kind", "row", "name", "expected"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_rows_as_published(tmp_path: Path, kind: str, row: dict[str, object], name: str, expected: str) -> None:
    (problem,) = load(write(tmp_path / "data.jsonl", "", row), kind, 0)
    assert (problem.id, problem.expected) == (name, expected)
    assert problem.prompt.startswith("P\n")
    assert r"\boxed{}" in problem.prompt


def test_aime_as_csv(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "aime.CSV", [{"Problem": "P", "Answer": "073", "ID": ""}])
    assert [(problem.id, problem.expected) for problem in load(path, "aime", 0)] == [("aime-2", "73")]


@pytest.mark.parametrize("form", ["list", "columns", "csv"])
def test_choices_are_shuffled_by_problem_and_seed_and_the_letter_follows(tmp_path: Path, form: str) -> None:
    rows = [COLUMNS | {"Record ID": f"rec{n}"} for n in range(30)]
    if form == "list":
        rows = [LIST | {"id": f"rec{n}", "answer": 2 if n % 2 else "C"} for n in range(30)]
    path = write_csv(tmp_path / "g.csv", rows) if form == "csv" else write(tmp_path / "g", *rows)
    problems = load(path, "gpqa", 0)
    assert [problem.id for problem in problems] == [f"rec{n}" for n in range(30)]
    for problem in problems:
        assert f"\n{problem.expected}) three\n" in problem.prompt
        found = sorted(re.findall(r"^[A-D]\) ((?:four\n)?.+)$", problem.prompt, re.M))
        assert found == ["four\nlines", "one", "three", 'two, "2"']
    assert {problem.expected for problem in problems} == set("ABCD")
    assert load(path, "gpqa", 0) == problems
    assert load(path, "gpqa", 1) != problems


def write_csv(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return path


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    [problem] = load(write_csv(tmp_path / "data.csv", [{"Problem": "P" * 200_000, "Answer": 5}]), "aime", 0)
    assert "P" * 200_000 in problem.prompt


MALFORMED = {
    "not-json": ("aime", '{"problem": ', "not JSON"),
    "not-an-object": ("aime", [1], "not an object"),
    "no-problem": ("aime", {"answer": 5}, '"problem" is missing, the keys are "answer"'),
    "empty-question": ("aime", {"Question": " ", "answer": 5}, '"question" is " "'),
    "answer-too-large": ("aime", {"problem": "P", "answer": 1000}, '"answer" is "1000"'),
    "answer-nan": ("aime", '{"problem": "P", "answer": NaN}', '"answer" is "NaN"'),
    "answer-true": ("aime", {"problem": "P", "answer": True}, '"answer" is true'),
    "three-incorrect": ("gpqa", {"Question": "W", "Correct Answer": "a"}, '"incorrect answer 1" is missing'),
    "three-choices": ("gpqa", LIST | {"choices": ["a", "b", "c"]}, '"choices" is ["a", "b", "c"]'),
    "letter-beyond-d": ("gpqa", LIST | {"answer": "E"}, '"answer" is "E"'),
    "same-id": ("aime", AIME | {"id": "first"}, "'first'"),
}


@pytest.mark.parametrize(("kind", "row", "said"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_line_is_named(tmp_path: Path, kind: str, row: object, said: str) -> None:
    good = LIST | {"answer": "C"} if kind == "gpqa" else AIME
    path = write(tmp_path / "data.jsonl", good | {"id": "first"}, "", row, good)
    with pytest.raises(ReasoningError, match="; fix: ") as error:
        load(path, kind, 0)
    assert str(error.value).startswith(f"{path}, line 3: ")
    assert said in str(error.value)


UNUSABLE = {
    "missing.jsonl": (None, "cannot be read"),
    "not-utf-8.jsonl": (b"\xff\xfe", "cannot be read"),
    "empty.jsonl": (b"\n\n", "holds no problems"),
    "quote.csv": (b'Problem,Answer\nP,5\n"Q"x,6\n', "line 3: not CSV"),
    "no-answer.csv": (b"Problem,Answer\nP,5\nQ,\n", 'line 3: "answer" is missing, the keys are "problem"'),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_file_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    contents, said = UNUSABLE[name]
    if contents is not None:
        (tmp_path / name).write_bytes(contents)
    with pytest.raises(ReasoningError, match=f"{name}.*{said}.*; fix: "):
        load(tmp_path / name, "aime", 0)


def test_built_in_problems_are_right_and_the_same_each_time() -> None:
    problems = arithmetic(40, 7)
    assert [(p.prompt.partition("\n")[0], p.expected) for p in problems[5:10]] == [
        ("What is 54 + 42?", "96"),
        ("Ada has 51 stamps and gives 9 of them to Ben. How many stamps does Ada have left?", "42"),
        ("There are 3 boxes with 5 eggs each. How many eggs are there?", "15"),
        ("A sequence begins 16, 21, 26, 31 and goes on by the same rule. What is its next term?", "36"),
        ("A pen costs 3 coins and a book costs 8 coins. What do 4 pens and 3 books cost together?", "36"),
    ]
    assert len({p.prompt for p in problems}) > 35
    assert arithmetic(10, 7) == problems[:10]
    assert arithmetic(40, 8) != problems
