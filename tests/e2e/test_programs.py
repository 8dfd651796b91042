"""The frontend programs on real servers: their structure, cache hits and ends, not the wisdom of a small model."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import sglang as sgl
from sglang.lang import api

from bench.programs.__main__ import PROGRAMS, parse
from bench.programs.common import Outcome, execute
from bench.programs.metering import MeteredEndpoint, ProgramError, Request, connect
from bench.programs.results import agreement
from bench.programs.self_consistency import last_number
from lim_sglang.tools.servers.process import ServerProcess

from .conftest import THREADS, start_server
from .native_client import NativeClient
from .pages import DOCS, block, commands, run

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("forked")]

ROOT = Path(__file__).parents[2]
SHORT = ["--max-tokens", "12", "--time-limit", "300"]


# What runs on both servers, small enough for a CPU.
SIZES = {
    "chain": ["--steps", "3"],
    "self_consistency": ["--paths", "3"],
    "tree_of_thought": ["--branches", "3", "--beam", "1", "--depth", "2"],
    "tool_loop": ["--turns", "2"],
    "documents": ["--documents", "4"],
}


@pytest.fixture(params=["dense_server", "lim_server"])
def server(request: pytest.FixtureRequest) -> ServerProcess:
    return request.getfixturevalue(request.param)


def write_calls(name: str, **options: Any) -> Any:
    """``sgl.gen``, where a grammar sees to it that a call is one: the short model copies none from examples."""
    return api.gen(name, **(options | ({"regex": r"[1-9]\d [-+*] [1-9]\d"} if name.startswith("call ") else {})))


class Run:
    """One program on one server, whose cache is empty at the start."""

    _done: ClassVar[dict[tuple[str, str], Run]] = {}

    @classmethod
    def on(cls, server: ServerProcess, name: str) -> Run:
        """The run of this session."""
        if (server.url, name) not in cls._done:
            cls._done[server.url, name] = cls(server, name, *SIZES[name])
        return cls._done[server.url, name]

    def __init__(self, server: ServerProcess, name: str, *flags: str) -> None:
        NativeClient(server.url).flush_cache()
        args = parse(["--server", server.url, *SHORT, *flags])
        endpoint = connect(server.url)
        self.shown: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sgl, "gen", write_calls)
            self.outcome: Outcome = execute(PROGRAMS[name], endpoint, args, self.shown.append)
        self.requests = endpoint.requests

    def of_kind(self, kind: str) -> list[Request]:
        return [request for request in self.requests if request.kind == kind]

    def assert_forks_hit_the_prefix(self, forks: int) -> list[int]:
        """The first `forks` generations found all of the shared prefix in the cache; how much of it each found.

        One that is read a little later may also find the few words that all forks begin with.
        """
        prefix, generations = self.requests[0], self.requests[1 : 1 + forks]
        assert (prefix.kind, [request.kind for request in generations]) == ("prefix", ["generate"] * forks)
        assert prefix.prompt_tokens > 300
        cached = [request.cached_tokens for request in generations]
        assert min(cached) >= prefix.prompt_tokens, (cached, prefix)
        assert max(cached) <= prefix.prompt_tokens + 8
        return [min(tokens, prefix.prompt_tokens) for tokens in cached]


def assert_in_order(parts: list[str], text: str) -> None:
    position = 0
    for part in parts:
        position = text.find(part, position)
        assert position >= 0, (part, text)
        position += len(part)


# The programs


def test_a_chain_streams_its_steps_and_grows_on_its_own_cache(server: ServerProcess) -> None:
    run = Run.on(server, "chain")
    (texts,) = run.outcome.chains
    assert len(texts) == 4
    assert_in_order([f"Step {n}:{text}" for n, text in enumerate(texts[:3], 1)], run.outcome.transcript)
    assert run.outcome.answer == texts[3].strip()
    first = run.shown[run.shown.index("\nstep 1:") + 1 : run.shown.index("\nstep 2:")]
    assert len(first) > 1, "token by token"
    assert "".join(first) == texts[0]
    for before, after in zip(run.requests, run.requests[1:], strict=False):
        assert after.cached_tokens >= before.prompt_tokens
    assert all(0 < request.completion_tokens <= 12 for request in run.requests)


def test_self_consistency_joins_its_forks_and_counts_their_votes(server: ServerProcess) -> None:
    run = Run.on(server, "self_consistency")
    run.assert_forks_hit_the_prefix(3)
    answers, votes = run.outcome.details["answers"], run.outcome.details["votes"]
    assert len(answers) == 3
    assert votes == Counter(found for found in map(last_number, answers) if found is not None)
    if votes:
        assert votes[run.outcome.answer] == max(votes.values())
    assert f"3 paths voted: {votes}. The answer is" in run.outcome.transcript
    assert len(run.of_kind("generate")) == 6
    assert [chain[1] for chain in run.outcome.chains] == answers


def test_a_tree_of_thought_is_pruned_to_its_beam(server: ServerProcess) -> None:
    run = Run.on(server, "tree_of_thought")
    run.assert_forks_hit_the_prefix(3)
    levels = run.outcome.details["levels"]
    assert [len(level) for level in levels] == [3, 3], "only what is kept has branches"
    for level in levels:
        scores = sorted((thought["score"] for thought in level), reverse=True)
        assert sorted((t["score"] for t in level if t["kept"]), reverse=True) == scores[:1]
        assert len(set(scores)) > 1
    best = max(levels[-1], key=lambda thought: thought["score"])
    assert best["text"] in run.outcome.transcript
    assert any(thought["text"] in run.outcome.transcript for thought in levels[0] if thought["kept"])
    assert "Verdict" not in run.outcome.transcript
    assert len(run.of_kind("score")) == 2 * 6
    assert all(r.prompt_tokens - r.cached_tokens <= 4 for r in run.of_kind("score")), "all but the verdict is cached"


def test_a_tool_loop_inserts_the_right_results(server: ServerProcess) -> None:
    run = Run.on(server, "tool_loop")
    calls = run.outcome.details["calls"]
    assert_in_order([f"calc({c['call']}){c['result']}\n{c['says']}" for c in calls], run.outcome.transcript)
    sums = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    understood = [(c, re.fullmatch(r"(\d+) ([-+*]) (\d+)", c["call"])) for c in calls]
    results = [(c["result"], sums[m[2]](int(m[1]), int(m[3]))) for c, m in understood if m]
    assert results, "the examples are there to be copied"
    assert all(result == f" = {expected}" for result, expected in results)


def test_documents_are_noted_on_from_one_shared_prefix(server: ServerProcess) -> None:
    run = Run.on(server, "documents")
    run.assert_forks_hit_the_prefix(4)
    notes = run.outcome.details["notes"]
    assert len(notes) == 4
    assert_in_order([f"Note on report {n}:{note}" for n, note in enumerate(notes, 1)], run.outcome.transcript)
    steps = run.requests[5:]
    assert len(steps) == 4
    assert min(request.cached_tokens for request in steps) >= run.requests[0].prompt_tokens


@pytest.mark.parametrize(("name", "forks"), [("self_consistency", 3), ("tree_of_thought", 3), ("documents", 4)])
def test_forks_hit_the_cache_equally_under_dense_and_lim(
    name: str, forks: int, dense_server: ServerProcess, lim_server: ServerProcess
) -> None:
    dense, lim = (Run.on(server, name) for server in (dense_server, lim_server))
    assert dense.assert_forks_hit_the_prefix(forks) == lim.assert_forks_hit_the_prefix(forks)


def test_within_the_budget_lim_says_what_dense_says(dense_server: ServerProcess, lim_server: ServerProcess) -> None:
    dense, lim = (Run.on(server, "tool_loop") for server in (dense_server, lim_server))
    assert max(request.prompt_tokens + request.completion_tokens for request in lim.requests) <= 256
    assert lim.outcome.transcript == dense.outcome.transcript
    assert agreement(dense.outcome.chains, lim.outcome.chains) == 1.0


# Ends


def test_a_refused_request_is_told_in_the_servers_words(dense_server: ServerProcess) -> None:
    args = parse(["--server", dense_server.url, *SHORT, "--steps", "3000", "--documents", "100"])
    for name in ("chain", "documents"):  # streamed, and before a fork
        with pytest.raises(ProgramError, match=r"the server refused: .* longer than the model's context length"):
            execute(PROGRAMS[name], connect(dense_server.url), args)


class Endless:
    """A program whose generations take minutes; the template's stop string may end one of them at any time."""

    def run(self, endpoint: MeteredEndpoint, *_: object) -> None:
        @sgl.function
        def endless(s: Any) -> None:
            s += "Once upon a time"
            for chapter in range(20):
                s += sgl.gen(f"chapter {chapter}", max_tokens=5000, ignore_eos=True)
                s[f"chapter {chapter}"]

        endless.run(backend=endpoint)


def test_what_is_given_up_stops_on_the_server(dense_server: ServerProcess) -> None:
    client = NativeClient(dense_server.url)
    args = parse(["--server", dense_server.url, "--time-limit", "4"])
    endpoint = connect(dense_server.url)
    with pytest.raises(ProgramError, match="not finished after 4 s"):
        execute(Endless(), endpoint, args)  # type: ignore[arg-type]
    assert client.wait_running(0, timeout=30)


@pytest.fixture
def own_server(model_path: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that a test may kill."""
    server = start_server(model_path, tmp_path / "server.log", "--attention-backend", "torch_native")
    try:
        server.wait_ready()
        yield server
    finally:
        for pid in server.processes():
            os.kill(pid, signal.SIGCONT)
        server.stop(grace=0)


def test_neither_a_frozen_nor_a_dying_server_holds_a_program(own_server: ServerProcess) -> None:
    endpoint = connect(own_server.url)
    for pid in own_server.processes():
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    args = ["--server", own_server.url, "--time-limit"]
    with pytest.raises(ProgramError, match="not finished after 2 s"):
        execute(PROGRAMS["self_consistency"], endpoint.fresh(), parse([*args, "2"]))
    assert time.monotonic() - began < 20
    for pid in own_server.processes():
        os.kill(pid, signal.SIGCONT)

    for name in ("chain", "self_consistency"):  # streamed by its own state, generated by forks; then: gone already
        dying = endpoint.fresh()
        killer = threading.Thread(target=stop_after_first_request, args=(own_server, dying), daemon=True)
        killer.start()
        with pytest.raises(ProgramError, match="the server no longer answers"):
            execute(PROGRAMS[name], dying, parse([*args, "120", "--max-tokens", "64", "--steps", "40"]))
        killer.join()


def stop_after_first_request(server: ServerProcess, endpoint: MeteredEndpoint) -> None:
    while not endpoint.requests and not endpoint.failure:
        time.sleep(0.05)
    server.stop(grace=0)


# The runner


def runner(*flags: str, mark: str = "", wait: bool = True) -> Any:
    """`python -m bench.programs`; the process itself, or how it ended."""
    env = os.environ | {"OMP_NUM_THREADS": str(THREADS), "LIM_TEST_MARK": mark}
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.programs", *flags],
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell that starts us in the background has us ignore SIGINT; a terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    if not wait:
        return process
    out, err = process.communicate(timeout=800)
    return subprocess.CompletedProcess(flags, process.returncode, out, err)


def processes_marked(mark: str) -> list[str]:
    """Command lines of the processes that have inherited the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("LIM_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue
    return found


def read_rows(out: Path) -> list[dict[str, str]]:
    with (out / "programs.csv").open() as file:
        return list(csv.DictReader(file))


def test_running_servers_are_compared_and_a_failure_does_not_stop_the_rest(
    dense_server: ServerProcess, lim_server: ServerProcess, tmp_path: Path
) -> None:
    where = ["--server", lim_server.url, "--dense-server", dense_server.url, "--out", str(tmp_path)]
    what = ["--programs", "chain,tool_loop,self_consistency", "--repeats", "2", "--concurrency", "3"]
    size = ["--steps", "3000", "--turns", "1", "--paths", "2", "--max-tokens", "8"]
    done = runner(*where, *what, *size)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    rows = {(row["program"], row["attention"], row["repeat"]): row for row in read_rows(tmp_path)}
    assert len(rows) == 3 * 2 * 2
    for (program, attention, _), row in rows.items():
        assert row["status"] == ("failed" if program == "chain" else "ok")
        assert ("context length" in row["reason"]) == (program == "chain")
        assert row["attended_share"] == "", "three programs share the counters"
        assert (row["agreement"] != "") == (attention == "lim" and program != "chain")
    assert [rows["tool_loop", "lim", n]["agreement"] for n in "01"] == ["1.0", "1.0"]
    stored = json.loads((tmp_path / "programs.json").read_text())
    assert [server["attention"] for server in stored["servers"]] == ["dense", "lim"]
    assert 0.1 < stored["servers"][1]["attended_share"] < 0.9
    assert stored["about"]["sglang"]


def test_no_server_at_the_url_costs_one_line(tmp_path: Path) -> None:
    done = runner("--server", "http://127.0.0.1:9", "--out", str(tmp_path))
    assert done.returncode == 1
    assert re.fullmatch(r"lim-sglang: error: no server answers at http://127\.0\.0\.1:9 \(.*\); fix: .*\n", done.stderr)
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_a_dense_server_must_be_dense(lim_server: ServerProcess, tmp_path: Path) -> None:
    where = ["--server", lim_server.url, "--dense-server", lim_server.url, "--out", str(tmp_path)]
    done = runner(*where, "--programs", "tool_loop", "--turns", "1")
    assert done.returncode == 1
    assert "serves with lim attention, not dense; fix: name another server" in done.stderr


def test_the_commands_of_the_page(lim_server: ServerProcess, tmp_path: Path) -> None:
    """With short answers, and files elsewhere."""
    for command in commands(block(DOCS / "programs.md", "bench.programs")):
        short = f"{command.replace('30000', str(lim_server.port))} --max-tokens 8"
        output = run(short + (f" --out {tmp_path}" if "bench.programs " in command else ""))
        assert "answer:" in output or (tmp_path / "programs.csv").exists(), output


def test_launch_runs_both_servers_and_stops_them(model_path: Path, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    what = ["--programs", "documents,tool_loop", "--documents", "3", "--turns", "1", "--max-tokens", "8"]
    done = runner("--launch", "--model", str(model_path), "--budget", "128", "--out", str(tmp_path), *what, mark=mark)
    assert done.returncode == 0, done.stderr
    assert processes_marked(mark) == []
    rows = {(row["program"], row["attention"]): row for row in read_rows(tmp_path)}
    assert list(rows) == [("tool_loop", "dense"), ("tool_loop", "lim"), ("documents", "dense"), ("documents", "lim")]
    dense, lim = rows["documents", "dense"], rows["documents", "lim"]
    assert (dense["agreement"], dense["attended_share"]) == ("", "")
    assert 0.1 < float(lim["attended_share"]) < 0.9
    assert 0 <= float(lim["agreement"]) <= 1
    assert min(int(row["generated_tokens"]) for row in rows.values()) > 0
    assert "documents │ lim" in re.sub(r"\s+", " ", done.stdout)
    stored = json.loads((tmp_path / "programs.json").read_text())
    assert stored["servers"][1]["lim"]["config"]["budget"] == 128


def test_ctrl_c_leaves_no_server(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    process = runner("--launch", "--out", str(tmp_path), mark=mark, wait=False)
    deadline = time.monotonic() + 300
    while not any("launch_server" in command for command in processes_marked(mark)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "interrupted; nothing is left running" in err
    assert "Traceback" not in err
    assert processes_marked(mark) == []
