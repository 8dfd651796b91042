"""A server that answers ``GET`` with JSON and takes an ``--api-key``, as SGLang's does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class InfoServer:
    """Answers in a thread of this process.

    Attributes:
        bodies: path -> JSON body; any other path is 404.
        key: what requests must carry; None for a server that is open.
        admin_key: what ``/flush_cache`` wants instead, as with ``--admin-api-key``.
    """

    def __init__(self, bodies: dict[str, Any], key: str | None = None, admin_key: str | None = None) -> None:
        self.bodies, self.key, self.admin_key = bodies, key, admin_key
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def _handler(stub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = stub.admin_key or stub.key if self.path == "/flush_cache" else stub.key
                allowed = wanted is None or self.headers["Authorization"] == f"Bearer {wanted}"
                status = 401 if not allowed else 200 if self.path in stub.bodies else 404
                body = {"error": "Unauthorized"} if not allowed else stub.bodies.get(self.path)
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                self.do_GET()

            def log_message(self, *_: object) -> None:
                return

        return Handler


@contextmanager
def serving(bodies: dict[str, Any], key: str | None = None, admin_key: str | None = None) -> Iterator[InfoServer]:
    server = InfoServer(bodies, key, admin_key)
    server.http.daemon_threads = True
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join(60)
