"""The reasoning benchmark's problems: files of each kind, and generated ones."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from bench.reasoning.data import ReasoningError, arithmetic, load

from .stub_server import write

GPQA_OWN = {
    "Record ID": "rec1",
    "Question": "Which?\n",
    "Correct Answer": "three\n",
    "Incorrect Answer 1": "one",
    "Incorrect Answer 2": 'two, "2"\n',
    "Incorrect Answer 3": "four\nlines",
    "Subdomain": "Chemistry",
}
GPQA = {"question": "Which?", "choices": ["one", "two", "three", "four"], "answer": "C"}


def test_a_file_of_each_kind(tmp_path: Path) -> None:
    aime = write(
        tmp_path / "a", {"problem": "P", "answer": "073", "year": 2024}, "", {"problem": "Q", "answer": 5, "id": 9}
    )
    assert [(p.id, p.expected) for p in load(aime, "aime", 0)] == [("aime-1", "73"), ("9", "5")]
    math = write(tmp_path / "m", {"problem": "P\u2028Q", "answer": r"\frac{1}{2}"})
    (problem,) = load(math, "math500", 0)
    assert problem.expected == r"\frac{1}{2}"
    assert problem.prompt.startswith("P\u2028Q\n")
    assert r"\boxed{}" in problem.prompt


def test_choices_are_shuffled_by_problem_and_seed_and_the_letter_follows(tmp_path: Path) -> None:
    rows = [GPQA | {"id": n, "answer": 2 if n % 2 else "C"} for n in range(30)]
    path = write(tmp_path / "g", *rows)
    problems = load(path, "gpqa", 0)
    for problem in problems:
        assert f"\n{problem.expected}) three\n" in problem.prompt + "\n"
        assert sorted(re.findall(r"^[A-D]\) (\w+)$", problem.prompt, re.M)) == ["four", "one", "three", "two"]
    assert {problem.expected for problem in problems} == set("ABCD")
    assert load(path, "gpqa", 0) == problems
    assert load(path, "gpqa", 1) != problems


PUBLISHED = {
    "number": ("aime", {"problem": "P", "answer": 204}, "204"),
    "capitals": ("aime", {"ID": "2024-I-1", "Problem": "P", "Solution": "...", "Answer": 204}, "204"),
    "question": ("aime", {"question": "P", "answer": "204"}, "204"),
    "degrees": ("aime", {"question": "P", "answer": r"336^\circ"}, "336"),
    "float": ("aime", {"problem": "P", "answer": 204.0}, "204"),
    "dollars": ("aime", {"problem": "P", "answer": "$204$"}, "204"),
    "solution": ("aime", {"problem": "P", "solution": r"\boxed{204}", "url": "u"}, "204"),
    "math": ("math500", {"problem": "P", "solution": "s", "answer": "p - q", "unique_id": "test/1.json"}, "p - q"),
    "math-solution": ("math500", {"problem": "P", "solution": r"So \boxed{\frac{1}{2}}."}, r"\frac{1}{2}"),
}


@pytest.mark.parametrize(("kind", "row", "expected"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_rows_as_published(tmp_path: Path, kind: str, row: dict[str, object], expected: str) -> None:
    (problem,) = load(write(tmp_path / "data.jsonl", row), kind, 0)
    assert problem.expected == expected
    assert problem.prompt.startswith("P\n")


def test_ids_as_published(tmp_path: Path) -> None:
    path = write(tmp_path / "m", *({"unique_id": f"test/{n}", "problem": "P", "answer": "5"} for n in (7, 9)))
    assert [problem.id for problem in load(path, "math500", 0)] == ["test/7", "test/9"]


@pytest.mark.parametrize("as_csv", [False, True], ids=["jsonl", "csv"])
def test_gpqa_in_its_own_columns(tmp_path: Path, as_csv: bool) -> None:
    rows = [GPQA_OWN | {"Record ID": f"rec{n}"} for n in range(30)]
    path = write_csv(tmp_path / "gpqa_diamond.csv", rows) if as_csv else write(tmp_path / "g", *rows)
    problems = load(path, "gpqa", 0)
    assert [problem.id for problem in problems] == [f"rec{n}" for n in range(30)]
    for problem in problems:
        assert f"\n{problem.expected}) three\n" in problem.prompt
        assert all(f") {choice}\n" in problem.prompt for choice in ("one", 'two, "2"', "four\nlines"))
    assert {problem.expected for problem in problems} == set("ABCD")


def test_aime_as_csv(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "aime.CSV", [{"Problem": "P", "Answer": "073", "ID": ""}])
    assert [(problem.id, problem.expected) for problem in load(path, "aime", 0)] == [("aime-2", "73")]


BAD_CSV = {
    "quote": ('Problem,Answer\nP,5\n"Q"x,6\n', "line 3: not CSV"),
    "answer": ("Problem,Answer\nP,5\nQ,x\n", 'line 3: "Answer" is "x"'),
    "no-answer": ("Problem,Answer\nP,5\nQ,\n", 'line 3: "answer" is missing, the keys are "Problem"'),
    "header-only": ("Problem,Answer\n", "holds no problems"),
}


@pytest.mark.parametrize(("text", "said"), BAD_CSV.values(), ids=BAD_CSV.keys())
def test_a_malformed_csv_line_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text(text)
    with pytest.raises(ReasoningError, match=r"data\.csv.*; fix: ") as error:
        load(path, "aime", 0)
    assert said in str(error.value)


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return path


MALFORMED = {
    "not-json": ("aime", '{"problem": ', "not JSON"),
    "not-an-object": ("aime", [1], "not an object"),
    "no-problem": ("aime", {"answer": 5}, '"problem" is missing, the keys are "answer"'),
    "empty-question": ("aime", {"Question": " ", "answer": 5}, '"Question" is " "'),
    "answer-too-large": ("aime", {"problem": "P", "answer": 1000}, '"answer" is 1000'),
    "answer-nan": ("aime", '{"problem": "P", "answer": NaN}', '"answer" is NaN'),
    "solution-without-box": ("aime", {"problem": "P", "solution": "so 73"}, '"solution" is "so 73"'),
    "answer-true": ("aime", {"problem": "P", "answer": True}, '"answer" is true'),
    "no-answer": ("aime", {"problem": "P"}, '"answer" is missing, the keys are "problem"'),
    "no-choices": ("gpqa", {"question": "Which?", "answer": "C"}, '"choices" is missing'),
    "three-incorrect": (
        "gpqa",
        {"Question": "Which?", "Correct Answer": "a", "Incorrect Answer 1": "b"},
        '"Correct Answer"',
    ),
    "empty-incorrect": ("gpqa", GPQA_OWN | {"Incorrect Answer 2": "\n"}, '"Incorrect Answer 2" is "\\n"'),
    "math-answer-as-number": ("math500", {"problem": "P", "answer": 5}, '"answer" is 5'),
    "three-choices": ("gpqa", GPQA | {"choices": ["a", "b", "c"]}, '"choices"'),
    "letter-beyond-d": ("gpqa", GPQA | {"answer": "E"}, '"answer" is "E"'),
    "id-list": ("aime", {"id": [], "problem": "P", "answer": 5}, '"id" is []'),
    "same-id": ("aime", {"id": "first", "problem": "P", "answer": 5}, "'first'"),
}


@pytest.mark.parametrize(("kind", "row", "said"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_line_is_named(tmp_path: Path, kind: str, row: object, said: str) -> None:
    good = GPQA if kind == "gpqa" else {"problem": "P", "answer": "5"}
    path = write(tmp_path / "data.jsonl", good | {"id": "first"}, "", row)
    with pytest.raises(ReasoningError) as error:
        load(path, kind, 0)
    assert str(error.value).startswith(f"{path}, line 3: ")
    assert said in str(error.value)
    assert "; fix: " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("contents", [None, b"\xff\xfe", b"\n\n"], ids=["missing", "not-utf-8", "empty"])
def test_a_file_that_cannot_be_used(tmp_path: Path, contents: bytes | None) -> None:
    path = tmp_path / "data.jsonl"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(ReasoningError, match=r"data\.jsonl .*; fix: "):
        load(path, "aime", 0)


def solved(text: str) -> int:
    """The answer of a built-in problem, worked out from its words."""
    n = [int(found) for found in re.findall(r"\d+", text)]
    if text.startswith("What is"):
        return sum(n)
    if "stamps" in text:
        return n[0] - n[1]
    if "eggs" in text:
        return n[0] * n[1]
    if text.startswith("A sequence"):
        assert n[1] - n[0] == n[2] - n[1] == n[3] - n[2]
        return n[3] + n[1] - n[0]
    pen, book, pens, books = n
    return pens * pen + books * book


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_built_in_problems_are_right_and_the_same_each_time(seed: int) -> None:
    problems = arithmetic(40, seed)
    assert [str(solved(p.prompt.split("\n\n")[0])) for p in problems] == [p.expected for p in problems]
    assert len({p.prompt for p in problems}) > 35
    assert arithmetic(40, seed) == problems
    assert arithmetic(10, seed) == problems[:10]
    assert arithmetic(40, seed + 1) != problems
