"""One server with ``--api-key`` and ``--dp-size 2``: every client reaches it, and reads the counters of both ranks."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sglang.srt.utils.numa_utils import init_threads_binding

from bench.programs.__main__ import PROGRAMS, parse
from bench.programs.arms import lim_state as state_for_programs
from bench.programs.common import execute
from bench.programs.metering import ProgramError, connect
from bench.reasoning import __main__ as reasoning
from bench.speed import serving
from lim_sglang.tools.servers.access import AccessError, headers
from lim_sglang.tools.servers.process import ServerProcess
from lim_sglang.tools.servers.state import lim_state

from .conftest import running, start_lim

pytestmark = pytest.mark.e2e

KEY = "secret"


@pytest.fixture(scope="module")
def server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    env = {}
    if "world_size" in inspect.signature(init_threads_binding).parameters:  # SGLang 0.5.23 asks for cores of every rank
        env["SGLANG_CPU_OMP_THREADS_BIND"] = "0|0"
    log = tmp_path_factory.mktemp("ranks") / "server.log"
    yield from running(start_lim(model_path, log, "--dp-size", "2", "--api-key", KEY, env=env))


@pytest.fixture(autouse=True)
def no_key_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def rows_by_rank(server: ServerProcess) -> list[int]:
    """Tokens decoded by each rank, the fewest first: SGLang tells them in any order."""
    answer = httpx.get(f"{server.url}/server_info", headers=headers(server.key), timeout=60).raise_for_status()
    return sorted(state["lim"]["counters"]["decode_rows"] for state in answer.json()["internal_states"])


def test_the_cache_may_be_flushed_with_the_key(server: ServerProcess) -> None:
    serving.check_flush(server.url, KEY)
    with pytest.raises(serving.ServingError, match="does not let this client flush its cache"):
        serving.check_flush(server.url, None)


def test_without_the_key_every_client_says_so(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = f"{server.url} wants a key (HTTP 401); fix: give its own by --api-key or OPENAI_API_KEY"
    with pytest.raises(SystemExit):
        reasoning.main(["--server", server.url, "--out", str(tmp_path / "o")])
    assert told in capsys.readouterr().err
    for ask, error in ((connect, ProgramError), (serving.serves_lim, AccessError)):
        with pytest.raises(error) as refused:
            ask(server.url)
        assert str(refused.value) == told


def test_reasoning_reads_both_ranks(server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    before = rows_by_rank(server)
    words = ["--problems", "4", "--max-tokens", "8", "--concurrency", "2", "--out", str(tmp_path)]
    reasoning.main(["--server", server.url, *words])
    after = rows_by_rank(server)
    assert len(after) == 2
    assert all(new > old for old, new in zip(before, after, strict=True)), "both ranks were asked"
    summary: Any = json.loads((tmp_path / "summary.json").read_text())
    assert summary["figures"]["errors"] == 0
    assert summary["server"]["lim"]["counters"]["decode_rows"] == sum(after)
    assert lim_state(server.url, 60, KEY)["counters"]["decode_rows"] == sum(after)


def test_a_program_runs_with_the_key(server: ServerProcess) -> None:
    endpoint = connect(server.url, key=KEY)
    args = parse(["--server", server.url, "--turns", "1", "--max-tokens", "4"])
    assert execute(PROGRAMS["tool_loop"], endpoint, args).transcript
    assert all(request.completion_tokens for request in endpoint.requests if request.kind == "generate")
    state: Any = state_for_programs(endpoint)
    assert state["counters"]["decode_rows"] == sum(rows_by_rank(server))
