"""What goes wrong around a server: clients get an answer or an error, no process stays behind, a new server serves."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from transformers import PreTrainedTokenizerBase

from lim_sglang.tools.servers.events import read_events
from lim_sglang.tools.servers.ports import free_port
from lim_sglang.tools.servers.process import ServerProcess

from . import fork_processes
from .conftest import COMMON_ARGS, THREADS, load_plugins
from .forked_server import ForkedServer
from .lossless_requests import LOSSLESS
from .native_client import REQUEST_TIMEOUT, NativeClient
from .prompts import make_prompt

pytestmark = pytest.mark.e2e

MODES = {"lim": (), "lossless": LOSSLESS}
CHUNK = 128
OPTIONS = ["--attention-backend", "lim", "--chunked-prefill-size", str(CHUNK), "--lim-budget", "256", *COMMON_ARGS]
CLIENTS = 4
ENDS_WITHIN = 120.0  # seconds on a busy machine
NEW_TOKENS = 8


class Relay:
    """One server after the other on the same port, as a supervisor would start them."""

    def __init__(self, model_path: Path, folder: Path, options: tuple[str, ...], prompt: list[int]) -> None:
        self._model_path, self._folder, self._options = model_path, folder, options
        # One of the two is started as a user's server is, by spawning.
        forked = options == LOSSLESS
        self._kind, self._environment = (
            (ForkedServer, load_plugins(folder, fork_processes)) if forked else (ServerProcess, {})
        )
        self._port, self._started = free_port(), 0
        self._prompt, self._tokens = prompt, list[int]()
        self.server: ServerProcess | None = None

    def serving(self) -> ServerProcess:
        """The server, started if the last one has ended; it has given its right answer to a prompt."""
        if self.server is None:
            self._started += 1
            self.server = self._kind(
                self._model_path,
                [*OPTIONS, *self._options],
                env={"OMP_NUM_THREADS": str(THREADS)} | self._environment,
                port=self._port,
                log_path=self._folder / f"server-{self._started}.log",
            )
            self.server.start()
            self.server.wait_ready()
        tokens = NativeClient(self.server.url).generate(self._prompt, NEW_TOKENS).tokens
        assert tokens == (self._tokens or tokens)
        self._tokens = tokens
        return self.server

    def has_ended(self) -> bool:
        """Whether the server ended by itself, and all that it started; whatever is left is killed."""
        server, self.server = self.server, None
        assert server is not None
        deadline = time.monotonic() + ENDS_WITHIN
        while (left := members(server)) and time.monotonic() < deadline:
            time.sleep(0.2)
        server.stop(grace=0)
        assert server.processes() == []
        return not left


@pytest.fixture(scope="module", params=MODES)
def relay(
    request: pytest.FixtureRequest,
    model_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Relay]:
    mode: str = request.param
    relay = Relay(model_path, tmp_path_factory.mktemp(mode), MODES[mode], make_prompt(tokenizer, 1, 400))
    yield relay
    if relay.server is not None:
        relay.server.stop()


def members(server: ServerProcess) -> list[psutil.Process]:
    """Processes of the server that still run; the watcher that would kill them with this test is none of them."""
    found = []
    for pid in server.processes():
        try:
            process = psutil.Process(pid)
            if "os.killpg(group, signal.SIGKILL)" not in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def scheduler(server: ServerProcess) -> psutil.Process:
    [found] = [process for process in members(server) if "scheduler" in " ".join(process.cmdline())]
    return found


def stream(url: str, prompt: list[int], tokens: int, begun: Callable[[], object]) -> str:
    """What a client saw: ``answered``, or the kind of error."""
    body = {"input_ids": prompt, "stream": True}
    body["sampling_params"] = {"temperature": 0, "ignore_eos": True, "max_new_tokens": tokens}
    events = []
    try:
        with httpx.stream("POST", f"{url}/generate", json=body, timeout=REQUEST_TIMEOUT) as response:
            for event in read_events(response.iter_bytes()):
                events.append(event)
                begun()
    except httpx.TimeoutException:
        return "hung"
    except httpx.HTTPError as error:
        return type(error).__name__
    last = events[-1] if events else {"error": "no event"}
    reason = last.get("meta_info", {}).get("finish_reason") or {}
    if "error" in last or reason.get("type") == "abort":
        return "error"
    return "answered" if reason == {"type": "length", "length": tokens} else f"cut off after {len(events)} events"


class Load:
    """Clients in the middle of their streams."""

    def __init__(self, server: ServerProcess, tokenizer: PreTrainedTokenizerBase, tokens: int) -> None:
        self._pool = ThreadPoolExecutor(CLIENTS)
        events: list[int] = []
        prompts = [make_prompt(tokenizer, 10 + client, 200 + 150 * client) for client in range(CLIENTS)]
        self._clients: list[Future[str]] = [
            self._pool.submit(stream, server.url, prompt, tokens, lambda: events.append(1)) for prompt in prompts
        ]
        deadline = time.monotonic() + REQUEST_TIMEOUT
        while len(events) < 2 * CLIENTS:
            assert time.monotonic() < deadline, "the streams never began"
            time.sleep(0.05)

    def seen(self) -> list[str]:
        with self._pool:
            return [client.result(REQUEST_TIMEOUT) for client in self._clients]


def steps(server: ServerProcess, kind: str) -> int:
    """``Prefill`` chunks or ``Decode`` steps so far, by the log."""
    return server.log_path.read_text(errors="replace").count(f"{kind} batch")


def test_a_client_that_goes_in_mid_prefill_leaves_nothing(relay: Relay, tokenizer: PreTrainedTokenizerBase) -> None:
    """Twenty chunks of prefill; the client closes its connection after the first.

    SGLang looks for it every few seconds; the answer would be of 5,000 tokens, in 1,000 rounds or more.
    """
    server = relay.serving()
    client = NativeClient(server.url)
    client.flush_cache()
    before, decoded = steps(server, "Prefill"), steps(server, "Decode")
    sampling = {"max_new_tokens": 5000, "ignore_eos": True}
    body = json.dumps({"input_ids": make_prompt(tokenizer, 3, 20 * CHUNK), "sampling_params": sampling}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"POST /generate HTTP/1.1\r\nHost: lim\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        deadline = time.monotonic() + REQUEST_TIMEOUT
        while steps(server, "Prefill") == before:
            assert time.monotonic() < deadline, "the prefill never began"
            time.sleep(0.02)
    assert steps(server, "Prefill") < before + 20, "it went too late"
    while client.used_tokens():
        assert time.monotonic() < deadline, "its slots are still taken"
        time.sleep(0.2)
    assert client.wait_running(0, ENDS_WITHIN)
    assert steps(server, "Decode") < decoded + 1000, "it was answered all the same"


def test_a_full_disk_takes_the_log_and_nothing_else(relay: Relay, tokenizer: PreTrainedTokenizerBase) -> None:
    """No process of the server can write another byte to a file; what it answers is the same."""
    server = relay.serving()
    processes = members(server)
    for process in processes:
        process.rlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    size = server.log_path.stat().st_size  # not before: the last request's lines may still have been on their way
    assert size > 1000
    try:
        assert Load(server, tokenizer, 30).seen() == ["answered"] * CLIENTS
        relay.serving()
        assert server.log_path.stat().st_size == size
        assert {process.pid for process in members(server)} == {process.pid for process in processes}
    finally:
        for process in processes:
            process.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    relay.serving()
    assert server.log_path.stat().st_size > size


@pytest.mark.parametrize("relay", ["lossless"], indirect=True)  # that it is gone SGLang sees, whatever decodes
def test_a_killed_scheduler_ends_the_server(relay: Relay, tokenizer: PreTrainedTokenizerBase) -> None:
    load = Load(relay.serving(), tokenizer, 2000)
    scheduler(relay.server).kill()
    seen = load.seen()
    assert not [outcome for outcome in seen if outcome.startswith(("answered", "hung", "cut off"))]
    assert relay.has_ended()


@pytest.mark.parametrize("relay", ["lim"], indirect=True)  # signals are told to SGLang, whatever decodes
@pytest.mark.parametrize("receivers", ["the server", "all its processes"])
def test_a_server_that_is_told_to_end_under_load_ends(
    relay: Relay, tokenizer: PreTrainedTokenizerBase, receivers: str
) -> None:
    """As a shell does it, and as a service manager does. Whoever is being answered gets all of it, or an error.

    The server is a new one on the port of the one before, which was killed or told to end.
    """
    load = Load(relay.serving(), tokenizer, 100)
    assert relay.server is not None
    assert relay.server.pid is not None
    (os.kill if receivers == "the server" else os.killpg)(relay.server.pid, signal.SIGTERM)
    seen = load.seen()
    assert not [outcome for outcome in seen if outcome.startswith(("hung", "cut off"))]
    assert relay.has_ended()
