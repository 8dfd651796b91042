"""`python -m bench.fidelity.acceptance`: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.driver import read_rows
from bench.fidelity.acceptance import __main__ as command
from bench.fidelity.acceptance.rounds import Round
from bench.fidelity.subject import Subject
from lim_sglang.tools.servers.embedded_model import ensure_model

SMALL = ["--quiet", "--contexts=300", "--windows=1", "--tokens=16", "--every=4", "--budgets=64", "--k", "2", "4"]
SMALL += ["--texts", "worked steps", "--drafts", "lim steps", "window", "--temperatures", "0", "2"]
Run = Callable[..., list[dict[str, str]]]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject.load(ensure_model(quiet=True))


@pytest.fixture(scope="module")
def run(subject: Subject) -> Run:
    """The command in this process, with the model loaded once; returns the rows of its folder."""

    def run(folder: Path, *words: str) -> list[dict[str, str]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Subject, "load", lambda *_: subject)
            patch.setattr("sys.argv", ["acceptance", *SMALL, "--out", str(folder), *words])
            command.main()
        return read_rows(folder / "acceptance.csv")

    return run


@pytest.fixture(scope="module")
def measured(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended."""
    folder = tmp_path_factory.mktemp("acceptance")
    run(folder)
    return folder


def test_a_row_for_everything_asked_for(measured: Path) -> None:
    rows = read_rows(measured / "acceptance.csv")
    keys = [(row["temperature"], row["drafts"], row["budget"], row["k"]) for row in rows]
    assert keys == [(t, d, "64", k) for t in ("0", "2") for d in ("lim steps", "window") for k in ("2", "4")]
    for row in rows:
        assert 0 < float(row["accepted"]) <= int(row["k"])
        if row["temperature"] == "0":
            rounds = 3  # at tokens 1, 5 and 9 of 16, four drafts each
            assert (rounds * float(row["accepted"])) % 1 == pytest.approx(0, abs=1e-4)
            assert row["accepted"] == row["accepted_greedy_drafts"]
        else:
            assert float(row["accepted"]) > float(row["accepted_greedy_drafts"]), "draws agree more than one choice"
    facts = json.loads((measured / "acceptance.json").read_text())
    assert (facts["tokens"], facts["every"], facts["most_drafts"], facts["plan"]) == (16, 4, 4, [2, 17])


def test_a_second_run_adds_what_is_missing(
    run: Run, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(measured, tmp_path / "copy")
    path = folder / "acceptance.csv"
    whole = read_rows(path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))  # stopped between two values of k
    assert run(folder) == whole
    monkeypatch.setattr(command, "write", None)
    assert run(folder) == whole, "nothing is left to do"


def test_rows_of_other_sizes_are_not_mixed(run: Run, measured: Path) -> None:
    message = r"^acceptance: error: .*json was begun with every 4, not 5; name another --out"
    with pytest.raises(SystemExit, match=message):
        run(measured, "--every", "5")


def test_nothing_is_reported_where_the_check_fails(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = Round.chances
    monkeypatch.setattr(Round, "chances", lambda *args, **named: 0.99 * exact(*args, **named))
    with pytest.raises(SystemExit, match=r"^acceptance: error: lim steps at K = 316, which leaves nothing out: 3.96"):
        run(tmp_path)
    assert len((tmp_path / "acceptance.csv").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budgets", "300"], "--budgets 300: expected less than --contexts 300, or nothing is left out"),
        (["--tokens", "5"], "--tokens 5: expected at least 6, two more than --k 4"),
        (["--k", "0"], "argument --k: '0' is not a whole number above 0"),
        (["--temperatures", "warm"], "argument --temperatures: warm: expected a number from 0 (greedy) to 100"),
        (["--temperatures", "nan"], "argument --temperatures: nan: expected a number from 0 (greedy) to 100"),
    ],
)
def test_bad_values_are_one_line(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, *words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_bad_subjects_are_one_line(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"^fidelity: error: --model {tmp_path} holds no config.json: expected"):
        Subject.load(tmp_path)
    with pytest.raises(SystemExit, match=r"^fidelity: error: text 'worked steps' has \d+ tokens: expected at least 99"):
        subject.stretch("worked steps", 999_999, 0, 1)


def test_stretches_lie_evenly_from_end_to_end(subject: Subject) -> None:
    ids = subject.ids("worked steps")
    middle = (len(ids) - 100) // 2
    for count, starts in ((1, [0]), (3, [0, middle, len(ids) - 100])):
        found = [subject.stretch("worked steps", 100, number, count) for number in range(count)]
        assert found == [ids[start : start + 100] for start in starts]
