"""A server's memory is told by process, torch.compile's workers apart from the HTTP server that has their name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from torch._inductor.compile_worker import __main__ as compile_worker

from bench.soak.watch import COMPILE_WORKERS, rss_mib

SLEEP = "import time; held = bytearray(64 << 20); print(flush=True); time.sleep(60)"


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """One as any other, one started as Inductor starts its pool."""
    entry = str(Path(compile_worker.__file__).resolve())
    started = [
        subprocess.Popen([sys.executable, "-c", SLEEP, *more], stdout=subprocess.PIPE, text=True)
        for more in ([], [entry, "--workers=2"])
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    yield started
    for process in started:
        with process:
            process.kill()


def test_compile_workers_are_told_apart(processes: list[subprocess.Popen[str]]) -> None:
    pids = [process.pid for process in processes]
    server: Any = SimpleNamespace(processes=lambda: pids)
    found = rss_mib(server)
    assert set(found) == {psutil.Process(pids[0]).name(), COMPILE_WORKERS}
    assert all(64 <= size < 640 for size in found.values()), found


def test_a_process_that_has_ended_does_not_count(processes: list[subprocess.Popen[str]]) -> None:
    processes[1].kill()
    processes[1].wait()
    server: Any = SimpleNamespace(processes=lambda: [process.pid for process in processes])
    assert set(rss_mib(server)) == {psutil.Process(processes[0].pid).name()}
