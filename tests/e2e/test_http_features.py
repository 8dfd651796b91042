"""One request for each thing that SGLang's HTTP interface offers: every one is answered, and the server lives."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from lim_sglang.tools.servers.events import read_events
from lim_sglang.tools.servers.process import ServerProcess

from .http_checks import Check
from .http_requests import ADMINISTERED, PAGES, REFUSED, SERVED, STREAMED, Body, generation
from .native_client import NativeClient

pytestmark = pytest.mark.e2e

TIMEOUT = 300.0

Ask = Callable[..., httpx.Response]


@pytest.fixture
def ask(lim_server: ServerProcess) -> Ask:
    """Sends one request, on a connection of its own; a server that dies of it is told by its own last words."""

    def send(method: str, path: str, **content: Any) -> httpx.Response:
        try:
            return httpx.request(method, f"{lim_server.url}{path}", timeout=TIMEOUT, **content)
        except httpx.HTTPError:
            lim_server.check_running(wait=30)
            raise

    return send


@pytest.fixture(autouse=True)
def the_server_lives(ask: Ask, lim_server: ServerProcess) -> Iterator[None]:
    """After each test, a plain request that has nothing to do with it is answered."""
    yield
    lim_server.check_running()
    assert ask("POST", "/generate", json=generation({"max_new_tokens": 1})).status_code == 200


@pytest.mark.parametrize(("path", "body", "check"), SERVED.values(), ids=SERVED)
def test_it_is_served(ask: Ask, path: str, body: Body, check: Check) -> None:
    response = ask("POST", path, json=body)
    assert response.status_code == 200, response.text
    check(response.json())


@pytest.mark.parametrize(("path", "body"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused(ask: Ask, path: str, body: Body) -> None:
    response = ask("POST", path, json=body)
    assert 400 <= response.status_code < 500, response.text
    assert response.text


@pytest.mark.parametrize(("path", "body"), STREAMED.values(), ids=STREAMED)
def test_it_is_streamed(ask: Ask, path: str, body: Body) -> None:
    response = ask("POST", path, json=body)
    assert response.status_code == 200
    assert response.content.endswith(b"data: [DONE]\n\n")
    assert [event for event in read_events([response.content]) if "error" in event] == []


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_answered(ask: Ask, path: str) -> None:
    assert ask("GET", path).status_code in (200, 400, 404)


@pytest.mark.parametrize(("path", "body"), ADMINISTERED.values(), ids=ADMINISTERED)
def test_administration_is_answered(ask: Ask, path: str, body: Body) -> None:
    assert 200 <= ask("POST", path, json=body).status_code <= 501


@pytest.mark.parametrize("mode", ["abort", "retract", "in_place"])
def test_a_pause_ends(ask: Ask, mode: str) -> None:
    for path, body in (("/pause_generation", {"mode": mode}), ("/continue_generation", {})):
        assert ask("POST", path, json=body).status_code == 200


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{bad", "application/json"),
        (b"null", "application/json"),
        (b"", "application/json"),
        (b"text=a", "text/plain"),
    ],
)
def test_what_is_no_request_is_refused(ask: Ask, content: bytes, kind: str) -> None:
    assert ask("POST", "/generate", content=content, headers={"Content-Type": kind}).status_code == 400


def test_infinite_numbers_are_refused(ask: Ask) -> None:
    for number in ("NaN", "Infinity"):
        for values in (f'"temperature": {number}', f'"temperature": 1, "logit_bias": {{"5": {number}}}'):
            body = f'{{"text": "a", "sampling_params": {{"max_new_tokens": 2, {values}}}}}'.encode()
            response = ask("POST", "/generate", content=body, headers={"Content-Type": "application/json"})
            assert response.status_code == 400, values


def test_the_server_is_as_before(lim_server: ServerProcess) -> None:
    """Nothing is stuck, and a request is served as on any day."""
    client = NativeClient(lim_server.url)
    assert client.wait_running(0, timeout=60)
    client.flush_cache()
    fresh, cached = (client.generate([1, 4093, 198, 59, 253], 8) for _ in range(2))
    assert (fresh.cached_tokens, cached.cached_tokens) == (0, 4)
    assert fresh.tokens == cached.tokens
