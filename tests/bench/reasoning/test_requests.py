"""Requests to the server: how many at once, which are repeated, with which key, and what is told when they fail."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from bench.reasoning import __main__ as reasoning
from bench.reasoning.data import arithmetic
from bench.reasoning.requests import sample_seed

from .conftest import DEADLINE, Stub, arguments, lim_info, records, refused, run_again, summary_of


def test_never_more_requests_in_flight_than_allowed(stub: Stub, tmp_path: Path) -> None:
    def reply(_: dict[str, Any]) -> tuple[int, str]:
        stub.wait(lambda: stub.most >= 3)
        stub.wait(lambda: stub.in_flight > 3, timeout=0.2)  # time for one too many to come
        return 200, "1"

    stub.reply = reply
    reasoning.main(arguments(stub, tmp_path, "--concurrency", "3"))
    assert (len(stub.asked), stub.most) == (6, 3)


def test_failed_requests_are_repeated_recorded_and_not_graded(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = arithmetic(6, 0)
    right = {p.prompt: p.expected for p in problems}
    late, broken = (problem.prompt for problem in problems[:2])

    def reply(body: dict[str, Any]) -> tuple[int, str]:
        prompt = body["messages"][0]["content"]
        fails = prompt == broken or (prompt == late and stub.prompts().count(late) == 1)
        return (500, "out of order") if fails else (200, right[prompt])

    stub.reply = reply
    reasoning.main(arguments(stub, tmp_path))
    assert stub.prompts().count(broken) == 3
    assert len(stub.asked) == 4 + 2 + 3
    (error,) = [r for r in records(tmp_path) if r["error"] is not None]
    assert error["problem"] == "arithmetic-2"
    assert "out of order" in error["error"]
    assert error["correct"] is None
    found = summary_of(tmp_path)["figures"]
    assert (found["samples"], found["errors"], found["accuracy"]) == (5, 1, 1.0)
    assert "the first with InternalServerError" in capsys.readouterr().out

    stub.reply = lambda body: (200, right[body["messages"][0]["content"]])
    assert run_again(stub, tmp_path) == [broken]
    assert "6 right, 0 failed" in capsys.readouterr().err
    found = summary_of(tmp_path)["figures"]
    assert (found["samples"], found["errors"], found["accuracy"]) == (6, 0, 1.0)


def test_a_request_has_a_time_limit(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate = threading.Event()
    stub.reply = lambda body: (200 if gate.wait(DEADLINE) else 500, "1")
    line = refused(arguments(stub, tmp_path, "--problems", "1", "--request-timeout", "0.2"), capsys)
    gate.set()
    assert "no sample could be graded" in line
    assert "APITimeoutError" in line
    assert len(stub.asked) == 3


def test_a_request_that_is_refused_is_an_error(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub.reply = lambda body: (400, "the prompt is too long")
    assert "the prompt is too long" in refused(arguments(stub, tmp_path), capsys)
    assert len(stub.asked) == 6


def test_the_servers_end_is_one_line_and_keeps_what_is_finished(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reply(_: dict[str, Any]) -> tuple[int, str]:
        if len(stub.asked) < 3:
            return 200, "1"
        stub.close()
        raise BrokenPipeError("the stub ends without an answer")

    monkeypatch.setattr(stub, "handle_error", lambda *_: None)
    stub.reply = reply
    assert "no longer answers" in refused(arguments(stub, tmp_path, "--concurrency", "1"), capsys)
    assert [r["error"] for r in records(tmp_path)] == [None, None]
    assert f"no server answers at {stub.url}" in refused(arguments(stub, tmp_path), capsys)


def test_what_is_no_openai_server(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub.models = {"data": []}
    assert "not as an OpenAI-compatible server" in refused(arguments(stub, tmp_path), capsys)


def test_no_room_for_a_prompt(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "a context of 4096 tokens" in refused(arguments(stub, tmp_path, "--max-tokens", "4096"), capsys)
    assert stub.asked == []


def test_seeds_depend_on_run_problem_and_sample() -> None:
    seeds = {sample_seed(s, p, n) for s in (0, 1) for p in ("a", "b", "1") for n in (0, 1, 11)}
    assert len(seeds) == 18


@pytest.mark.parametrize("place", ["flag", "environment"])
def test_every_request_carries_the_key(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    stub.key, stub.info = "secret", lim_info(7)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "wants a key (HTTP 401); fix: give its own by --api-key" in refused(arguments(stub, tmp_path), capsys)
    if place == "environment":
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setattr("sys.argv", ["bench.reasoning", "--api-key", "secret"])  # which the summary quotes
    reasoning.main(arguments(stub, tmp_path, *(["--api-key", "secret"] if place == "flag" else [])))
    assert [r["error"] for r in records(tmp_path)] == [None] * 6
    assert "SPARSE" in capsys.readouterr().out, "the state of lim was read, too"
    assert "secret" not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_a_server_whose_ranks_disagree_is_no_dense_one(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.info = lim_info(7)
    stub.info["internal_states"].append({})
    assert '1 of 2 ranks report "lim"' in refused(arguments(stub, tmp_path), capsys)
