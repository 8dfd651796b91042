"""A server that answers the reasoning benchmark as it is told, and what the tests of its runs share."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bench.reasoning import __main__ as reasoning

DEADLINE = 60.0


class Stub:
    """An OpenAI-compatible server in threads of this process, which keeps what it was asked.

    Attributes:
        reply: body of a chat request -> HTTP status and text of the answer; may block.
        asked: bodies of all chat requests.
        most: highest number of chat requests that were open at once.
        key: what every request must carry; None for a server that is open.
    """

    def __init__(self) -> None:
        self.reply: Callable[[dict[str, Any]], tuple[int, str]] = lambda body: (200, r"\boxed{1}")
        self.asked: list[dict[str, Any]] = []
        self.info: dict[str, Any] = {"version": "stub", "attention_backend": "stub"}
        self.models: object = {"data": [{"id": "stub", "max_model_len": 4096}]}
        self.message: dict[str, str] = {}
        self.key: str | None = None
        self.in_flight = self.most = 0
        self.changed = threading.Condition()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def _handler(stub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                bodies = {"/v1/models": stub.models, "/server_info": stub.info}
                if self.allowed():
                    self.send(200 if self.path in bodies else 404, bodies.get(self.path))

            def allowed(self) -> bool:
                good = stub.key is None or self.headers["Authorization"] == f"Bearer {stub.key}"
                if not good:
                    self.send(401, {"error": "Unauthorized"})
                return good

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not self.allowed():
                    return
                with stub.changed:
                    stub.asked.append(body)
                    stub.in_flight += 1
                    stub.most = max(stub.most, stub.in_flight)
                    stub.changed.notify_all()
                try:
                    status, text = stub.reply(body)
                finally:
                    with stub.changed:
                        stub.in_flight -= 1
                        stub.changed.notify_all()
                self.send(status, stub.completion(text) if status == 200 else {"message": text})

            def send(self, status: int, body: object) -> None:
                data = json.dumps(body).encode()
                with suppress(BrokenPipeError, ConnectionResetError):  # the client was killed, or gave up
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                return

        return Handler

    def completion(self, text: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text} | self.message
        usage = {"prompt_tokens": 7, "completion_tokens": 11, "total_tokens": 18}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "stub",
            "choices": [choice],
            "usage": usage,
        }

    def prompts(self) -> list[str]:
        return sorted(body["messages"][0]["content"] for body in self.asked)

    def wait(self, reached: Callable[[], bool], timeout: float = DEADLINE) -> bool:
        with self.changed:
            return self.changed.wait_for(reached, timeout)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def arguments(stub: Stub, out: Path, *more: str) -> list[str]:
    return ["--server", stub.url, "--out", str(out), "--problems", "6", *more]


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def run_again(stub: Stub, out: Path) -> list[str]:
    """What a second run of the same command asks for."""
    assert stub.wait(lambda: stub.in_flight == 0)
    stub.asked.clear()
    reasoning.main(arguments(stub, out))
    return stub.prompts()


def refused(argv: Sequence[str], capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    """The one error line of a run that ends with ``code``."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        reasoning.main(argv)
    stderr = capsys.readouterr().err
    lines = [line for line in stderr.splitlines() if line.startswith("lim-sglang: error: ")]
    assert ended.value.code == code, stderr
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    return lines[0]


LIM = {
    "config": {"budget": 64, "recency_ratio": 0.25, "sink_tokens": 4, "select_layers": "auto"},
    "plan": {"dense": 2, "select": 2, "sparse": 6, "select_layers": [2, 6]},
}


def lim_info(attended: int, **config: Any) -> dict[str, Any]:
    tokens = {"dense": attended, "select": attended, "sparse": attended}
    counters = {"attended_tokens": tokens, "context_tokens": {role: 2 * n for role, n in tokens.items()}}
    state = LIM | {"config": LIM["config"] | config, "counters": counters}
    return {"version": "stub", "attention_backend": "lim", "internal_states": [{"lim": state}]}
