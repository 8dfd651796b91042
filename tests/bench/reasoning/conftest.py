"""A server that answers the reasoning benchmark as it is told, and what the tests of its runs share."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bench.reasoning import __main__ as reasoning

DEADLINE = 60.0


class Stub(ThreadingHTTPServer):
    """An OpenAI-compatible server in threads of this process, which keeps what it was asked.

    Attributes:
        reply: body of a chat request -> HTTP status and message or error; may block.
        asked: bodies of all chat requests.
        most: highest number of chat requests that were open at once.
        key: what every request must carry; None for a server that is open.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.reply: Callable[[dict[str, Any]], tuple[int, object]] = lambda body: (200, r"\boxed{1}")
        self.asked: list[dict[str, Any]] = []
        self.info: dict[str, Any] = {"version": "stub", "attention_backend": "stub"}
        self.models: object = {"data": [{"id": "stub", "max_model_len": 4096}]}
        self.key: str | None = None
        self.in_flight = self.most = 0
        self.changed = threading.Condition()

    def prompts(self) -> list[str]:
        return sorted(body["messages"][0]["content"] for body in self.asked)

    def wait(self, reached: Callable[[], bool], timeout: float = DEADLINE) -> bool:
        with self.changed:
            return self.changed.wait_for(reached, timeout)

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        self.send(200, {"/v1/models": self.server.models, "/server_info": self.server.info}[self.path])

    def do_POST(self) -> None:
        stub, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with stub.changed:
            stub.asked.append(body)
            stub.in_flight += 1
            stub.most = max(stub.most, stub.in_flight)
            stub.changed.notify_all()
        try:
            status, said = stub.reply(body)
        finally:
            with stub.changed:
                stub.in_flight -= 1
                stub.changed.notify_all()
        message = said if isinstance(said, dict) else {"content": said}
        choices = [{"message": message, "finish_reason": "stop"}]
        answer: dict[str, object] = {"choices": choices, "usage": {"prompt_tokens": 7, "completion_tokens": 11}}
        self.send(status, answer if status == 200 else {"message": said})

    def send(self, status: int, body: object) -> None:
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            status, body = 401, {"error": "Unauthorized"}
        data = json.dumps(body).encode()
        with suppress(BrokenPipeError, ConnectionResetError):  # the client was killed, or gave up
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.close()


def arguments(stub: Stub, out: Path, *more: str) -> list[str]:
    return ["--server", stub.url, "--out", str(out), "--problems", "6", *more]


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def summary_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "summary.json").read_text()))


def run_again(stub: Stub, out: Path) -> list[str]:
    """What a second run of the same command asks for."""
    assert stub.wait(lambda: stub.in_flight == 0)
    stub.asked.clear()
    reasoning.main(arguments(stub, out))
    return stub.prompts()


def refused(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one error line of a run that ends with 1."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        reasoning.main(argv)
    stderr = capsys.readouterr().err
    assert ended.value.code == 1, stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("lim-sglang: error: ")]
    assert "Traceback" not in stderr
    return line


def lim_info(attended: int, **config: Any) -> dict[str, Any]:
    """The ``/server_info`` of a server with lim."""
    tokens = {"dense": attended, "select": attended, "sparse": attended}
    counters = {"attended_tokens": tokens, "context_tokens": {role: 2 * n for role, n in tokens.items()}}
    plan = {"dense": 2, "select": 2, "sparse": 6, "select_layers": [2, 6]}
    state = {"config": {"budget": 64, "select_layers": "auto"} | config, "plan": plan, "counters": counters}
    return {"version": "stub", "attention_backend": "lim", "internal_states": [{"lim": state}]}
