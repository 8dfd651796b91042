"""A run that stopped is taken up again where it stopped, with the same settings only."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.reasoning import __main__ as reasoning
from bench.reasoning.data import arithmetic

from .stub_server import DEADLINE, Stub, arguments, lim_info, records, refused, run_again, write

COMMAND = [sys.executable, "-m", "bench.reasoning"]


@contextmanager
def run_with_three_answers(stub: Stub, out: Path) -> Iterator[subprocess.Popen[str]]:
    """A run in a process of its own, of six problems, whose first three samples are finished; the others hang."""
    gate, answered = threading.Event(), threading.Semaphore(3)

    def reply(_: dict[str, Any]) -> tuple[int, str]:
        if not answered.acquire(blocking=False):
            gate.wait(DEADLINE)
        return 200, r"\boxed{1}"

    stub.reply = reply
    command = [*COMMAND, *arguments(stub, out, "--concurrency", "2")]
    # A shell that starts us in the background has us ignore SIGINT; a terminal does not.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert stub.wait(lambda: len(stub.asked) == 5), process.poll()
        assert len(records(out)) == 3  # a sample is in the file before the next one is asked for
        yield process
    finally:
        process.kill()
        process.communicate()
        gate.set()


def missing_prompts(done: Sequence[dict[str, Any]]) -> list[str]:
    finished = {record["problem"] for record in done}
    return sorted(problem.prompt for problem in arithmetic(6, 0) if problem.id not in finished)


def test_a_killed_run_is_taken_up_where_it_stopped(stub: Stub, tmp_path: Path) -> None:
    with run_with_three_answers(stub, tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE)
    done = records(tmp_path)
    assert run_again(stub, tmp_path) == missing_prompts(done)
    assert records(tmp_path)[:3] == done
    assert sorted(r["problem"] for r in records(tmp_path)) == [f"arithmetic-{n}" for n in range(1, 7)]
    assert json.loads((tmp_path / "summary.json").read_text())["figures"]["samples"] == 6
    assert run_again(stub, tmp_path) == []


def test_ctrl_c_says_in_one_line_how_to_go_on(stub: Stub, tmp_path: Path) -> None:
    with run_with_three_answers(stub, tmp_path) as process:
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("lim-sglang: error: ")]
    assert "interrupted" in line
    assert str(tmp_path) in line
    assert run_again(stub, tmp_path) == missing_prompts(records(tmp_path)[:3])


def test_a_half_written_line_is_dropped(stub: Stub, tmp_path: Path) -> None:
    reasoning.main(arguments(stub, tmp_path))
    path = tmp_path / "samples.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:-1])
    assert len(run_again(stub, tmp_path)) == 2
    assert sorted(r["problem"] for r in records(tmp_path)) == [f"arithmetic-{n}" for n in range(1, 7)]


def test_a_line_that_is_no_sample_is_named(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reasoning.main(arguments(stub, tmp_path))
    path = tmp_path / "samples.jsonl"
    path.write_text('{"problem": 1}\n' + path.read_text())
    line = refused(arguments(stub, tmp_path), capsys)
    assert "samples.jsonl, line 1 " in line
    assert "fix: delete that line" in line


CHANGED = {
    "temperature": (["--temperature", "0.7"], "temperature=0.6", "--temperature 0.6"),
    "samples": (["--samples", "2"], "samples=1", "--samples 1"),
    "max-tokens": (["--max-tokens", "99"], "max_tokens=256", "--max-tokens 256"),
    "problems": (["--problems", "5"], "problems=6", "--problems 6"),
    "seed": (["--seed", "1"], "seed=0", "--seed 0"),
}


@pytest.mark.parametrize(("changed", "recorded", "fix"), CHANGED.values(), ids=CHANGED.keys())
def test_other_settings_are_refused(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: list[str], recorded: str, fix: str
) -> None:
    reasoning.main(arguments(stub, tmp_path))
    before = (tmp_path / "samples.jsonl").read_bytes()
    stub.asked.clear()
    line = refused(arguments(stub, tmp_path, *changed), capsys)
    assert recorded in line
    assert f"fix: {fix}, or another --out" in line
    assert stub.asked == []
    assert (tmp_path / "samples.jsonl").read_bytes() == before


def test_another_server_is_refused(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub.info = lim_info(0)
    reasoning.main(arguments(stub, tmp_path))
    stub.info = lim_info(0, budget=128)
    assert 'lim={"budget": 64,' in refused(arguments(stub, tmp_path), capsys)
    stub.info = {"attention_backend": "torch_native"}
    assert 'attention_backend="lim", this server has "torch_native"' in refused(arguments(stub, tmp_path), capsys)


def test_other_problems_are_refused(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "d", {"problem": "P", "answer": 3})
    argv = [*arguments(stub, tmp_path / "o"), "--data", str(data), "--kind", "aime", "--max-tokens", "9"]
    reasoning.main(argv)
    write(data, {"problem": "Q", "answer": 3})
    assert "problems_sha256" in refused(argv, capsys)


def test_a_folder_in_use_is_refused(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run_with_three_answers(stub, tmp_path):
        assert "another run is writing" in refused(arguments(stub, tmp_path, "--concurrency", "2"), capsys)
