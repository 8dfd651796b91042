"""The reasoning benchmark with a server that it starts itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from bench.reasoning.grade import is_correct

from .conftest import THREADS

COMMAND = [sys.executable, "-m", "bench.reasoning"]


def sessions_below(process: subprocess.Popen[bytes]) -> set[int]:
    """The sessions of all processes below a running one; the server has one of its own."""
    found = set()
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(ProcessLookupError):
                found.add(os.getsid(child.pid))
    return found - {os.getsid(0)}


def running_in(sessions: set[int]) -> list[str]:
    left = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process.name())
    return left


@pytest.mark.e2e
@pytest.mark.usefixtures("forked")
def test_one_command_serves_asks_and_sums_up(tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    command = [*COMMAND, "--launch", "--budget", "96", "--problems", "4", "--samples", "2"]
    command += ["--max-tokens", "48", "--concurrency", "4", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    sessions: set[int] = set()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                sessions |= sessions_below(process)
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 0, log.read_text()
    assert sessions
    assert running_in(sessions) == []

    found = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert {(r["problem"], r["sample"]) for r in found} == {(f"arithmetic-{n}", k) for n in range(1, 5) for k in (0, 1)}
    assert len(found) == 8
    for record in found:
        assert 0 < record["completion_tokens"] <= 48
        assert record["prompt_tokens"] > 20
        assert record["finish_reason"] in ("stop", "length")
        assert record["text"]
        assert record["correct"] == is_correct(record["extracted"], record["expected"], "arithmetic")
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["figures"]["problems"], summary["figures"]["samples"], summary["figures"]["errors"]) == (4, 8, 0)
    assert summary["figures"]["accuracy"] == pytest.approx(sum(r["correct"] for r in found) / 8)
    assert summary["figures"]["output_tokens"] == sum(r["completion_tokens"] for r in found)
    assert summary["figures"]["tokens_per_second"] > 0
    assert summary["server"]["attention_backend"] == "lim"
    assert summary["server"]["lim"]["config"]["budget"] == 96
    read, full = (summary["lim_tokens_this_sitting"][key] for key in ("attended", "context"))
    assert 0 < read["sparse"] < full["sparse"]
    assert 0 < read["dense"] == full["dense"]
    assert "output tokens/s" in log.read_text()
