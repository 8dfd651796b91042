"""A stub server for each test that asks for one, and less patience with math-verify."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from bench.reasoning import algebra

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


@pytest.fixture(scope="module")
def hasty() -> Iterator[None]:
    """math-verify with one second for each question, so that tests of what it cannot answer end soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algebra, "TIME_LIMIT", 1.0)
        algebra.close()
        yield
        algebra.close()
