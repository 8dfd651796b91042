"""A server that answers ``GET`` with JSON and takes an ``--api-key``, as SGLang's does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any


@contextmanager
def serving(bodies: dict[str, Any], key: str | None = None, admin_key: str | None = None) -> Iterator[SimpleNamespace]:
    """A server with a ``url``, in threads of this process.

    Args:
        bodies: path -> JSON body; any other path is 404.
        key: what requests must carry; None for a server that is open.
        admin_key: what ``/flush_cache`` wants instead, as with ``--admin-api-key``.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = admin_key or key if self.path == "/flush_cache" else key
            allowed = wanted is None or self.headers["Authorization"] == f"Bearer {wanted}"
            self.send_response(401 if not allowed else 200 if self.path in bodies else 404)
            self.end_headers()
            self.wfile.write(json.dumps(bodies.get(self.path) if allowed else {"error": "Unauthorized"}).encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield SimpleNamespace(url=f"http://127.0.0.1:{http.server_address[1]}")
        finally:
            http.shutdown()
