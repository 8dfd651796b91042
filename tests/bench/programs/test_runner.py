"""The runner: jobs in parallel, its files, and its flags."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench import driver
from bench.programs import __main__ as runner
from bench.programs.__main__ import PROGRAMS, Record, parse, report, run_arm
from bench.programs.common import Outcome
from bench.programs.metering import ProgramError


class Arm:
    """A server without lim; programs on it take a moment, fail for an odd seed, and answer with the seed."""

    base_url = "http://h:1"

    def __init__(self, attention: str) -> None:
        self.attention, self.endpoint, self.model_info, self.requests = attention, self, {}, ()
        self.running = self.most = 0

    def fresh(self) -> Arm:
        return self

    def why_lost(self, reason: str) -> str:
        return f"lost: {reason}"


def execute(_program: object, arm: Arm, args: Any) -> Outcome:
    arm.running += 1
    arm.most = max(arm.most, arm.running)
    time.sleep(0.05)
    arm.running -= 1
    if args.seed % 2:
        raise ProgramError("odd")
    return Outcome(str(args.seed), [[arm.attention[0]]], "")


def test_jobs_run_a_few_at_a_time_and_are_compared_with_dense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "execute", execute)
    monkeypatch.setattr(runner, "lim_state", lambda _: None)
    words = ["--api-key", "secret", "--server-arg=--api-key secret", "--out", str(tmp_path)]
    args = parse(["--launch", "--repeats", "4", "--programs", "chain,documents", "--concurrency", "3", *words])
    monkeypatch.setattr("sys.argv", ["bench.programs", *words])
    record, arms, note = Record(), [Arm("dense"), Arm("lim")], io.StringIO()
    for arm in arms:
        run_arm(arm, args, Console(file=note), record)  # type: ignore[arg-type]
    report(args, record)
    assert [arm.most for arm in arms] == [3, 3]
    assert note.getvalue().count("failed on lim: lost: odd") == 4
    stored = json.loads((tmp_path / "programs.json").read_text())
    places = [(row["program"], row["attention"], row["repeat"], row["status"]) for row in stored["rows"]]
    expected = [(name, arm, n) for name in ("chain", "documents") for arm in ("dense", "lim") for n in range(4)]
    assert places == [(*place, "failed" if place[2] % 2 else "ok") for place in expected]
    rows = driver.read_rows(tmp_path / "programs.csv")
    told = [(row["answer"], row["agreement"], row["same_answer"]) for row in rows]
    assert told[:5] == [("0", "", ""), ("", "", ""), ("2", "", ""), ("", "", ""), ("0", "0.0", "True")]
    assert "--api-key ***" in json.dumps(stored)
    assert "secret" not in json.dumps(stored)


MISTAKES = {
    "no server": ([], "one of the arguments --server --launch is required"),
    "unknown program": (["--launch", "--programs", "chain,foo"], "'foo' is no program; fix: some of chain,"),
    "zero tokens": (["--launch", "--max-tokens", "0"], "--max-tokens: '0' is not a whole number from 1 to 1048576"),
    "fraction": (["--launch", "--paths", "2.5"], "--paths: '2.5' is not a whole number from 2 to 256; fix: give one"),
    "nan": (["--launch", "--time-limit", "nan"], "'nan' is not a number from 0.1 to 86400"),
    "no URL": (["--server", "localhost:30000"], "'localhost:30000' is not a URL; fix: give one such as http://"),
    "budget of a running server": (["--server", "http://h:1", "--budget", "64"], "are for --launch; fix: leave them"),
    "dense server of a launch": (["--launch", "--dense-server", "http://h:1"], "--dense-server is for --server"),
}


@pytest.mark.parametrize(("flags", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_costs_one_line(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(flags)
    captured = capsys.readouterr()
    assert (ended.value.code, captured.out, captured.err.count("\n")) == (2, "", 1)
    assert said in captured.err


def test_flags_have_their_defaults() -> None:
    args = parse(["--server", "http://127.0.0.1:30000/v1/", "--programs", "documents, chain,chain"])
    assert args.server == "http://127.0.0.1:30000"
    assert args.programs == ["documents", "chain"]
    assert parse(["--launch", "--temperature", "2", "--paths", "256"]).programs == list(PROGRAMS)
