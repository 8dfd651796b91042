"""math-verify's process: its time limit, its end, and a machine without math-verify."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from bench.reasoning import __main__ as reasoning
from bench.reasoning import algebra

from .conftest import DEADLINE, Stub, arguments, refused, write

ENDLESS = "9^{9^{9^9}}"


def worker() -> psutil.Process:
    """The process that serves these tests."""
    algebra.equal.cache_clear()
    assert algebra.equal("x+1", "1+x")
    (found,) = (child for child in psutil.Process().children() if any("worker.py" in part for part in child.cmdline()))
    return found


@pytest.mark.parametrize("text", [ENDLESS, "1000000!+x", "(x+y+z+w)^{500}"])
def test_what_takes_too_long_is_wrong_and_said_and_the_next_one_is_graded(
    text: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(algebra, "TIME_LIMIT", 1.0)
    algebra.close()
    algebra.equal.cache_clear()
    with caplog.at_level(logging.WARNING, "bench.reasoning.algebra"):
        assert not algebra.equal("x+1", text)
    (line,) = caplog.messages
    assert "counts as wrong" in line
    assert text in line
    monkeypatch.undo()
    assert algebra.equal("x+1", "1+x")
    algebra.close()


def test_threads_take_turns_with_one_process() -> None:
    before = worker()
    questions = [(f"x+{n}", f"{n if n % 3 else n + 1}+x") for n in range(40)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda question: algebra.equal(*question), questions))
    assert answers == [n % 3 != 0 for n in range(40)]
    assert worker() == before


@pytest.mark.parametrize("text", ["3000!", "\ud800+x", "\0", r"\frac{1}{" * 80 + "1" + "}" * 80])
def test_what_the_parser_stumbles_over_is_wrong_and_costs_no_process(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = worker()
    assert not algebra.equal("x+1", text)
    assert worker() == before
    assert caplog.messages == []


SCRIPT = f"""
import sys, psutil
from bench.reasoning import algebra
algebra.TIME_LIMIT = 2.0
assert algebra.equal("x+1", "1+x")
(worker,) = psutil.Process().children()
print(worker.pid, flush=True)
if sys.argv[1] == "busy":
    algebra.equal("x+1", {ENDLESS!r})
sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["done", "busy"])
def test_no_process_stays_behind(tmp_path: Path, state: str) -> None:
    """A script without ``if __name__ == "__main__"``, which ends by itself or is killed."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, str(script), state]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        worker = psutil.Process(int(process.stdout.readline()))
        if state == "busy":
            process.kill()
        process.communicate(timeout=DEADLINE)
        assert state == "busy" or process.returncode == 0
    _, alive = psutil.wait_procs([worker], DEADLINE)
    assert not alive


def test_a_process_that_someone_ended_is_replaced() -> None:
    process = worker()
    process.kill()
    psutil.wait_procs([process], DEADLINE)
    assert algebra.equal("x+2", "2+x")


def test_without_math_verify_a_run_ends_before_it_asks(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    data = write(tmp_path / "d", {"problem": "P", "answer": "73"})
    line = refused([*arguments(stub, tmp_path / "o"), "--data", str(data), "--kind", "math500"], capsys)
    assert line.endswith("fix: pip install 'lim-sglang[bench]'")
    assert stub.asked == []
    assert not (tmp_path / "o").exists()


def test_without_math_verify_the_built_in_set_runs(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reasoning.main(arguments(stub, tmp_path))
    assert json.loads((tmp_path / "summary.json").read_text())["figures"]["samples"] == 6
