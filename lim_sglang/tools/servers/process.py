"""SGLang's own HTTP server as a child process that never outlives its parent.

The server runs in a session of its own, so a Ctrl-C at the terminal reaches the parent only and `stop()` decides what
happens. A watcher process in that session holds the read end of a pipe: when the parent is gone, for whatever
reason, the pipe closes and the watcher kills the process group.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import httpx

from lim_sglang.tools.servers.access import server_key
from lim_sglang.tools.servers.ports import HOST, free_port, why_not_bound

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
# SGLang's /health runs one token through the model and answers after a second or more.
_HEALTH_TIMEOUT = 30.0
_KILL_TIMEOUT = 30.0
# uvicorn's word for a port that somebody took while the model was loaded; SGLang itself goes on to wait for minutes.
_PORT_LOST = "error while attempting to bind on address"

# Runs first in the child: leaves the watcher behind (an orphan of the same session), then becomes the server.
_LAUNCHER = """
import os, signal, sys
group = os.getpid()
if os.fork() == 0:
    if os.fork() == 0:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        while os.read(0, 1):
            pass
        os.killpg(group, signal.SIGKILL)
    os._exit(0)
os.wait()
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class ServerError(RuntimeError):
    """The server did not start, or ended too early; the message is one line and names the log."""


class ServerProcess:
    """One `python -m sglang.launch_server` on the loopback interface.

    `with ServerProcess(path, ["--attention-backend", "lim"]) as server: server.wait_ready(); ... server.url`

    `env` is laid over the parent's environment. The log file is kept after the end.
    """

    def __init__(
        self,
        model_path: str | Path,
        extra_args: Sequence[str] = (),
        *,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        port: int | None = None,
        start_timeout: float = 3600,
    ) -> None:
        self._model_path = str(model_path)
        self._extra_args = list(extra_args)
        self._env = dict(env or {})
        self.port = free_port() if port is None else port
        self.log_path = log_path
        self._start_timeout = start_timeout
        self._popen: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def key(self) -> str | None:
        """What requests to it have to carry, as of ``access.server_key``; None for a server without a key."""
        return server_key(self._extra_args)

    @property
    def pid(self) -> int | None:
        """The server's process id, which is also its session's and group's; None before `start()`."""
        return None if self._popen is None else self._popen.pid

    def command(self) -> list[str]:
        """The command line that `start()` runs."""
        module = [sys.executable, "-m", "sglang.launch_server", "--model-path", self._model_path]
        return [*module, "--host", HOST, "--port", str(self.port), *self._extra_args]

    def _environment(self) -> dict[str, str]:
        environment = {**os.environ, **self._env}
        if Path(self._model_path).is_dir():  # else it is a name, and SGLang may have to fetch the model
            environment.setdefault("HF_HUB_OFFLINE", "1")
        environment.setdefault("PYTHONUNBUFFERED", "1")
        # On a CPU, threads that spin while they wait make decode 7 times slower as soon as anything else runs.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        return environment

    def start(self) -> None:
        """Start the server and return at once; `wait_ready()` waits for it. Raises ServerError if its port is taken."""
        if reason := why_not_bound(HOST, self.port):
            raise ServerError(f"cannot listen on port {self.port} of {HOST}: {reason}; name another port")
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with _interrupts_deferred(), self.log_path.open("wb") as log:
            self._popen = self._launch(log)
            self._started_at = time.monotonic()
            atexit.register(self.stop)

    def _launch(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, *self.command()],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=self._environment(),
            start_new_session=True,
        )

    def wait_ready(self, on_tick: Callable[[float], None] | None = None) -> None:
        """Block until GET /health answers 200; `on_tick(elapsed seconds)` is called every quarter of a second.

        Raises ServerError at once when the server ends or finds its port taken, and after `start_timeout` seconds when
        it never answers.
        """
        settled = threading.Event()  # healthy, or no longer waited for
        threading.Thread(target=self._probe_health, args=[settled], daemon=True).start()
        try:
            while not settled.wait(_POLL_SECONDS):
                if not self._running():
                    raise self._failed("ended before it was ready")
                if any(_PORT_LOST in line for line in self._log_tail()):
                    raise self._failed("cannot serve, its port was taken while it started")
                elapsed = time.monotonic() - self._started_at
                if elapsed > self._start_timeout:
                    raise self._failed(f"was not ready after {self._start_timeout:.0f} s")
                if on_tick is not None:
                    on_tick(elapsed)
        finally:
            settled.set()

    def _probe_health(self, settled: threading.Event) -> None:
        """Ask /health in a thread of its own, so that a slow answer hides neither the server's end nor a Ctrl-C."""
        with httpx.Client(timeout=_HEALTH_TIMEOUT, trust_env=False) as client:
            while not settled.wait(_POLL_SECONDS):
                # Refused, reset or timed out: not up yet. The waiting thread watches the process itself.
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"{self.url}/health").status_code == 200:
                        settled.set()

    def check_running(self, wait: float = 0) -> None:
        """Raise ServerError if the server has ended, or ends within `wait` seconds.

        After a failed request a short wait tells a dying server from a mere error.
        """
        deadline = time.monotonic() + wait
        while self._running():
            if time.monotonic() >= deadline:
                return
            time.sleep(0.05)
        raise self._failed("ended")

    def _running(self) -> bool:
        """Whether the server itself still runs. It is not reaped here, so that its process id stays ours."""
        if self._popen is None or self._popen.returncode is not None:
            return False
        return os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def _failed(self, what: str) -> ServerError:
        """The error for a server of which ``what`` is true, once the end of its log has been shown on stderr."""
        tail = "\n".join(self._log_tail()).strip() or "nothing"
        print(f"The last lines of {self.log_path}:\n{tail}", file=sys.stderr, flush=True)
        return ServerError(f"the server {what} (log: {self.log_path})")

    def _log_tail(self) -> list[str]:
        """The last 20 lines of the log, without line ends; progress bars are cut to their last state."""
        with self.log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 8000))
            text = log.read().decode(errors="replace")
        return [line.rstrip().rsplit("\r", 1)[-1] for line in text.split("\n")][-20:]

    def processes(self) -> list[int]:
        """Process ids of the server's session that still run, its watcher included (Linux; elsewhere empty)."""
        return [] if self.pid is None else _session_processes(self.pid)

    def stop(self, grace: float = 20.0) -> None:
        """End the server: SIGTERM, up to `grace` seconds, then SIGKILL for all that is left. May be called again.

        A Ctrl-C in the middle shortens the wait; the killing itself is not interruptible.
        """
        if self._popen is None or self._popen.returncode is not None:
            return
        try:
            if self._running():
                self._popen.terminate()
            deadline = time.monotonic() + grace
            while self._running() and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            with _interrupts_deferred():
                self._kill_session(self._popen)
                atexit.unregister(self.stop)

    def _kill_session(self, popen: subprocess.Popen[bytes]) -> None:
        """SIGKILL the group and every process of the session, wait until none is left, then reap the server."""
        deadline = time.monotonic() + _KILL_TIMEOUT
        # EPERM is what macOS answers for a group whose only member is a zombie.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(popen.pid, signal.SIGKILL)
        while (left := _session_processes(popen.pid)) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        if left:
            logger.error("processes %s of the server survived SIGKILL for %.0f s", left, _KILL_TIMEOUT)
        if popen.stdin is not None:
            popen.stdin.close()
        popen.wait(timeout=_KILL_TIMEOUT)

    def __enter__(self) -> ServerProcess:
        try:
            self.start()
        except BaseException:
            self.stop(grace=0)
            raise
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self.stop(grace=0 if isinstance(error, KeyboardInterrupt) else 20.0)


def _session_processes(session: int) -> list[int]:
    """Running processes of a session, zombies left out; it also finds those that changed their group."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the name, which may hold spaces and parentheses: state, parent, group, session.
            state, _, _, owner = entry.read_text(errors="replace").rsplit(")", 1)[1].split()[:4]
        except OSError:  # it ended between the listing and the read
            continue
        if int(owner) == session and state not in "ZX":
            found.append(int(entry.parent.name))
    return found


@contextlib.contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Hold a Ctrl-C back until the block is done, then deliver it. Outside the main thread none arrives anyway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _frame: pending.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pending:
        signal.raise_signal(signal.SIGINT)
