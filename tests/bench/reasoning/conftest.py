"""A stub server for each test that asks for one."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from .stub_server import DEADLINE, Stub


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    server.http.daemon_threads = True
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.close()
    thread.join(DEADLINE)
