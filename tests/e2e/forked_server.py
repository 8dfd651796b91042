"""Servers that ``fork_server.py`` forks, where processes that import SGLang once more would be the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import IO, Any

from lim_sglang.tools.servers.process import ServerProcess

READ_AT_IMPORT = ("HF_HUB_OFFLINE", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "PYTHONUNBUFFERED")


class ForkedServer(ServerProcess):
    def _launch(self, log: IO[bytes]) -> Any:
        environment = self._environment()
        server = fork_server(**{name: environment[name] for name in READ_AT_IMPORT if name in environment})
        request = {"arguments": self.command()[3:], "environment": environment, "log": str(self.log_path)}
        print(json.dumps(request), file=server.stdin, flush=True)
        return Forked(int(server.stdout.readline()))

    def _running(self) -> bool:
        return self.pid in self.processes()


class Forked:
    """What ``ServerProcess`` asks of its ``Popen``."""

    stdin = returncode = None

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def wait(self, timeout: float) -> None:
        """Nobody is left in the session."""
        self.returncode = 0


@cache
def fork_server(**environment: str) -> Any:
    """One for this process, with which it ends."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("fork_server.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, env=os.environ | environment, start_new_session=True)
