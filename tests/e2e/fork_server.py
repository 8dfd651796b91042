"""A process that has imported what SGLang serves with, and forks a server for each line that it reads.

Nothing but imports comes before a fork, so that no thread is lost by one. Ended servers stay zombies, whose ids nobody
else gets; when stdin ends, as its parent is gone, the others are killed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import signal
import sys

from setproctitle import getproctitle

from lim_sglang.host import versions

# What servers' processes are called is written where this process's first environment lies, which is looked for now.
getproctitle()
gc.disable()
import sglang.srt.entrypoints.http_server  # noqa: E402
import sglang.srt.models.registry  # noqa: E402, F401
from sglang.srt.environ import envs  # noqa: E402
from sglang.srt.managers import scheduler  # noqa: E402

versions.check_host()  # which keeps the sources that it has parsed
gc.freeze()
gc.enable()


def main() -> None:
    servers = []
    for line in sys.stdin:
        if (server := os.fork()) == 0:
            serve(**json.loads(line))
            return
        servers.append(server)
    for server in servers:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server, signal.SIGKILL)


def serve(arguments: list[str], environment: dict[str, str], log: str) -> None:
    """Become ``python -m sglang.launch_server`` with these arguments; the process id is the answer."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    sys.argv[1:] = arguments
    print(os.getpid(), flush=True)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(log, os.O_WRONLY), 1)
    os.dup2(1, 2)
    for name in ("TEST_RETRACT", "TEST_RETRACT_INTERVAL"):  # read at import
        setattr(scheduler, name, getattr(envs, f"SGLANG_{name}").get())
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
