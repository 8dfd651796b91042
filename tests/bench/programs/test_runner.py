"""The runner: jobs in parallel, and its flags."""

from __future__ import annotations

import time
from typing import Any

import pytest

from bench.programs.__main__ import PROGRAMS, in_parallel, parse


def test_jobs_run_a_few_at_a_time() -> None:
    running, most, seen = set(), [0], []

    def work(job: tuple[str, int]) -> Any:
        running.add(job)
        most[0] = max(most[0], len(running))
        time.sleep(0.02)
        running.discard(job)
        return job

    in_parallel([("a", number) for number in range(12)], 3, work, seen.append)
    assert sorted(seen) == [("a", number) for number in range(12)]
    assert most[0] == 3


def test_a_mistake_of_the_runner_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        in_parallel([("a", 0)], 2, lambda job: 1 // 0, lambda row: None)  # type: ignore[arg-type,return-value]


MISTAKES = {
    "no server": ([], "one of the arguments --server --launch is required"),
    "unknown program": (["--launch", "--programs", "chain,foo"], "'foo' is no program; fix: some of chain,"),
    "zero tokens": (["--launch", "--max-tokens", "0"], "--max-tokens: '0' is not a whole number from 1 to 1048576"),
    "hot": (["--launch", "--temperature", "3"], "--temperature: '3' is not a number from 0 to 2"),
    "nan": (["--launch", "--time-limit", "nan"], "'nan' is not a number from 0.1 to 86400"),
    "word": (["--launch", "--paths", "five"], "--paths: 'five' is not a whole number from 2 to 256"),
    "no URL": (["--server", "localhost:30000"], "'localhost:30000' is not a URL; fix: give one such as http://"),
    "bad port": (["--server", "http://localhost:99999"], "is not a URL"),
    "budget of a running server": (["--server", "http://h:1", "--budget", "64"], "are for --launch; fix: leave them"),
    "dense server of a launch": (["--launch", "--dense-server", "http://h:1"], "--dense-server is for --server"),
    "unknown flag": (["--launch", "--path"], "--path"),
}


@pytest.mark.parametrize(("flags", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_costs_one_line(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(flags)
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert said in captured.err


def test_flags_have_their_defaults() -> None:
    args = parse(["--server", "http://127.0.0.1:30000/v1/", "--programs", "documents, chain,chain"])
    assert args.server == "http://127.0.0.1:30000"
    assert args.programs == ["documents", "chain"]
    assert parse(["--launch"]).programs == list(PROGRAMS)
