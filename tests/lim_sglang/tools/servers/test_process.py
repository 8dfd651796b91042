"""ServerProcess against a small HTTP script in the place of SGLang."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from lim_sglang.tools.servers.process import ServerError, ServerProcess

# argv: port, mode. Every mode but "die" leaves a grandchild that ignores SIGTERM; "stubborn" ignores it itself;
# "regroup" puts the grandchild into a process group of its own; "starting" never becomes ready; "late" finds its port
# taken, and waits as SGLang does.
SERVER = """
import http.server, os, signal, subprocess, sys, time
port, mode = int(sys.argv[1]), sys.argv[2]
if mode == "die":
    print("[2026-01-01 00:00:00] Scheduler hit an exception: Traceback (most recent call last):")
    print('  File "x.py", line 1, in <module>')
    print("ValueError: lim: budget 3 is too small; use 16 or more")
    print("[2026-01-01 00:00:00] Received sigquit from a child process. It usually means the child failed.", flush=True)
    sys.exit(3)
if mode == "late":
    print(f"ERROR: [Errno 98] error while attempting to bind on address ('127.0.0.1', {port}): address already in use")
    print("INFO: Waiting for application shutdown.", flush=True)
    time.sleep(600)
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", sleeper], process_group=0 if mode == "regroup" else None)
started = time.monotonic()

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ready = mode != "starting" and time.monotonic() > started + 0.6
        self.send_response(200 if ready else 503)
        self.end_headers()

    def log_message(self, *args):
        pass

print("listening", os.environ.get("HF_HUB_OFFLINE"), os.environ["PYTHONUNBUFFERED"], sys.stdin.read() == "", flush=True)
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class StandIn(ServerProcess):
    mode = "serve"

    def command(self) -> list[str]:
        return [sys.executable, "-c", SERVER, str(self.port), self.mode]


def stand_in(tmp_path: Path, mode: str = "serve", start_timeout: float = 120) -> StandIn:
    server = StandIn(tmp_path, log_path=tmp_path / "server.log", start_timeout=start_timeout)
    server.mode = mode
    return server


def eventually(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_command_line_is_sglang_on_the_loopback() -> None:
    server = ServerProcess("/models/m", ["--attention-backend", "lim"], log_path=Path("log"), port=1234)
    tail = ["--model-path", "/models/m", "--host", "127.0.0.1", "--port", "1234", "--attention-backend", "lim"]
    assert server.command() == [sys.executable, "-m", "sglang.launch_server", *tail]
    assert server.url == "http://127.0.0.1:1234"


def test_ready_then_stopped_with_its_grandchildren(tmp_path: Path) -> None:
    ticks: list[float] = []
    with stand_in(tmp_path) as server:
        server.wait_ready(ticks.append)
        assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200
        assert len(server.processes()) == 3  # server, grandchild, watcher
    assert server.processes() == []
    assert ticks
    assert server.log_path.read_text() == "listening 1 1 True\n"


def test_early_death_is_reported_at_once_with_the_end_of_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    with stand_in(tmp_path, "die", start_timeout=300) as server:
        with pytest.raises(ServerError) as error:
            server.wait_ready()
        assert time.monotonic() - began < 100
    assert str(error.value) == f"the server ended before it was ready (log: {server.log_path})"
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == f"The last lines of {server.log_path}:"
    assert "ValueError: lim: budget 3 is too small; use 16 or more" in shown
    assert server.processes() == []


def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = StandIn(tmp_path, port=port, log_path=tmp_path / "server.log")
        with pytest.raises(ServerError, match=f"port {port} of 127.0.0.1: it is in use; name another port"):
            server.start()
    assert server.pid is None


@pytest.mark.parametrize(
    ("mode", "limit", "told"),
    [("late", 300, "cannot serve, its port was taken while it started"), ("starting", 1, "not ready after 1 s")],
)
def test_a_server_that_never_becomes_ready(tmp_path: Path, mode: str, limit: float, told: str) -> None:
    with stand_in(tmp_path, mode, limit) as server, pytest.raises(ServerError, match=told):
        server.wait_ready()
    assert server.processes() == []


@pytest.mark.parametrize("mode", ["stubborn", "regroup"])
def test_stop_kills_what_ignores_sigterm_or_left_the_group(tmp_path: Path, mode: str) -> None:
    server = stand_in(tmp_path, mode)
    server.stop()  # harmless before the start, and once more after the end
    server.start()
    server.wait_ready()
    server.stop(grace=0.3)
    server.stop()
    assert server.processes() == []


def test_stop_after_the_server_was_killed_from_outside(tmp_path: Path) -> None:
    with stand_in(tmp_path) as server:
        server.wait_ready()
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        assert eventually(lambda: server.pid not in server.processes())
        assert server.processes()
    assert server.processes() == []


def interrupt_from(on: Callable[[], bool]) -> threading.Thread:
    """Send this process SIGINT, as a terminal would, once the condition holds."""

    def send() -> None:
        if eventually(on):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.fixture
def sigint_is_heard() -> Iterator[None]:
    """A shell that starts us in the background has us ignore SIGINT; these tests need what a terminal gives."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint_is_heard")
def test_ctrl_c_while_waiting_leaves_nothing(tmp_path: Path) -> None:
    server = stand_in(tmp_path, "starting")
    thread = interrupt_from(lambda: len(server.processes()) >= 3)
    with pytest.raises(KeyboardInterrupt), server:
        server.wait_ready()
    thread.join()
    assert server.processes() == []


@pytest.mark.usefixtures("sigint_is_heard")
def test_ctrl_c_inside_stop_leaves_nothing(tmp_path: Path) -> None:
    server = stand_in(tmp_path, "stubborn")
    server.start()
    server.wait_ready()
    began = time.monotonic()
    thread = interrupt_from(lambda: time.monotonic() > began + 0.5)
    with pytest.raises(KeyboardInterrupt):
        server.stop(grace=300)
    thread.join()
    assert server.processes() == []
    assert time.monotonic() - began < 100


PARENT = """
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("stand_in_tests", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
server = module.stand_in(pathlib.Path(sys.argv[2]))
server.start()
server.wait_ready()
print(server.pid, flush=True)
time.sleep(600)
"""


def test_killed_parent_takes_the_server_along(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", PARENT, __file__, str(tmp_path)]
    parent = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    session = int(parent.stdout.readline())

    class View(ServerProcess):
        @property
        def pid(self) -> int:
            return session

    server = View("model", log_path=tmp_path / "server.log")
    assert len(server.processes()) == 3
    parent.kill()
    parent.wait()
    assert eventually(lambda: server.processes() == [])


def test_a_model_that_is_no_folder_may_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with StandIn("org/model", log_path=tmp_path / "server.log") as server:
        server.wait_ready()
        assert server.log_path.read_text().startswith("listening None ")
