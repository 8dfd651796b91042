"""A run that stopped is taken up again where it stopped, with the same settings only."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.reasoning import __main__ as reasoning
from bench.reasoning.data import arithmetic

from .conftest import DEADLINE, Stub, arguments, lim_info, records, refused, run_again, summary_of, write


@contextmanager
def run_with_three_answers(stub: Stub, out: Path) -> Iterator[subprocess.Popen[str]]:
    """A run in a process of its own, of six problems, whose first three samples are finished; the others hang."""
    gate, answered = threading.Event(), threading.Semaphore(3)

    stub.reply = lambda body: (200 if answered.acquire(blocking=False) or gate.wait(DEADLINE) else 500, r"\boxed{1}")
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.reasoning", *arguments(stub, out, "--concurrency", "2")],
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts us in the background has us ignore SIGINT; a terminal does not.
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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_ended_is_taken_up_where_it_stopped(stub: Stub, tmp_path: Path, number: signal.Signals) -> None:
    with run_with_three_answers(stub, tmp_path) as process:
        process.send_signal(number)
        _, stderr = process.communicate(timeout=DEADLINE)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in stderr
        assert f"lim-sglang: error: interrupted; what is finished is in {tmp_path}, " in stderr
    done = records(tmp_path)
    finished = {record["problem"] for record in done}
    assert run_again(stub, tmp_path) == sorted(p.prompt for p in arithmetic(6, 0) if p.id not in finished)
    assert records(tmp_path)[:3] == done
    assert sorted(r["problem"] for r in records(tmp_path)) == [f"arithmetic-{n}" for n in range(1, 7)]
    assert summary_of(tmp_path)["figures"]["samples"] == 6
    assert run_again(stub, tmp_path) == []


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


def test_other_settings_and_servers_are_refused(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub.info = lim_info(0)
    reasoning.main(arguments(stub, tmp_path))
    before = (tmp_path / "samples.jsonl").read_bytes()
    stub.asked.clear()
    line = refused(arguments(stub, tmp_path, "--temperature", "0.7"), capsys)
    assert "settings.json records temperature=0.6, this run has 0.7; fix: " in line
    assert "records problems=6, this run has 5" in refused(arguments(stub, tmp_path, "--problems", "5"), capsys)
    stub.info = lim_info(0, budget=128)
    assert 'lim={"budget": 64,' in refused(arguments(stub, tmp_path), capsys)
    stub.info = {"attention_backend": "torch_native"}
    assert 'attention_backend="lim", this run has "torch_native"' in refused(arguments(stub, tmp_path), capsys)
    assert stub.asked == []
    assert (tmp_path / "samples.jsonl").read_bytes() == before


def test_other_problems_are_refused(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "d", {"problem": "P", "answer": 3})
    argv = [*arguments(stub, tmp_path / "o"), "--data", str(data), "--kind", "aime", "--max-tokens", "9"]
    reasoning.main(argv)
    write(data, {"problem": "Q", "answer": 3})
    assert "problems_sha256" in refused(argv, capsys)


def test_a_folder_in_use_is_refused(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run_with_three_answers(stub, tmp_path):
        assert "another run is writing" in refused(arguments(stub, tmp_path, "--concurrency", "2"), capsys)
