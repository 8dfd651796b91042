"""A server's memory is told by process, torch.compile's workers apart from the HTTP server that has their name."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import psutil
from torch._inductor.compile_worker import __main__ as compile_worker

from bench.soak.watch import COMPILE_WORKERS, rss_mib

SLEEP = "import time; held = bytearray(64 << 20); print(flush=True); time.sleep(60)"


def test_compile_workers_are_told_apart_and_what_has_ended_does_not_count() -> None:
    """One process as any other, one started as Inductor starts its pool."""
    plain, worker = (
        subprocess.Popen([sys.executable, "-c", SLEEP, *more], stdout=subprocess.PIPE, text=True)
        for more in ([], [str(compile_worker.__file__), "--workers=2"])
    )
    server: Any = SimpleNamespace(processes=lambda: [plain.pid, worker.pid])
    with plain, worker:
        try:
            for process in (plain, worker):
                assert process.stdout is not None
                process.stdout.readline()
            name = psutil.Process(plain.pid).name()
            found = rss_mib(server)
            assert set(found) == {name, COMPILE_WORKERS}
            assert all(64 <= size < 640 for size in found.values()), found
            worker.kill()
            worker.wait()
            assert set(rss_mib(server)) == {name}
        finally:
            plain.kill()
            worker.kill()
