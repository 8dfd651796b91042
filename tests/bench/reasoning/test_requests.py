"""Requests to the server: how many at once, which are repeated, and what is told when they fail."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from bench.reasoning import __main__ as reasoning
from bench.reasoning.data import arithmetic
from bench.reasoning.requests import sample_seed

from .stub_server import DEADLINE, Stub, arguments, records, refused, run_again


@pytest.mark.parametrize("bound", [1, 3])
def test_never_more_requests_in_flight_than_allowed(stub: Stub, tmp_path: Path, bound: int) -> None:
    def reply(_: dict[str, Any]) -> tuple[int, str]:
        stub.wait(lambda: stub.most >= bound)
        stub.wait(lambda: stub.in_flight > bound, timeout=0.2)  # time for one too many to come
        return 200, "1"

    stub.reply = reply
    reasoning.main(arguments(stub, tmp_path, "--concurrency", str(bound)))
    assert len(stub.asked) == 6
    assert stub.most == bound


def test_failed_requests_are_repeated_recorded_and_not_graded(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = arithmetic(6, 0)
    right = {p.prompt: p.expected for p in problems}
    broken = problems[1].prompt

    def reply(body: dict[str, Any]) -> tuple[int, str]:
        prompt = body["messages"][0]["content"]
        return (500, "out of order") if prompt == broken else (200, right[prompt])

    stub.reply = reply
    reasoning.main(arguments(stub, tmp_path))
    assert stub.prompts().count(broken) == 3
    assert len(stub.asked) == 5 + 3
    (error,) = [r for r in records(tmp_path) if r["error"] is not None]
    assert error["problem"] == "arithmetic-2"
    assert "out of order" in error["error"]
    assert error["correct"] is None
    found = json.loads((tmp_path / "summary.json").read_text())["figures"]
    assert (found["samples"], found["errors"], found["accuracy"]) == (5, 1, 1.0)
    assert "the first with InternalServerError" in capsys.readouterr().out

    stub.reply = lambda body: (200, right[body["messages"][0]["content"]])
    assert run_again(stub, tmp_path) == [broken]
    assert "6 right, 0 failed" in capsys.readouterr().err
    found = json.loads((tmp_path / "summary.json").read_text())["figures"]
    assert (found["samples"], found["errors"], found["accuracy"]) == (6, 0, 1.0)


def test_a_request_that_works_at_the_second_attempt_is_no_error(stub: Stub, tmp_path: Path) -> None:
    stub.reply = lambda body: (503, "busy") if len(stub.asked) == 1 else (200, "1")
    reasoning.main(arguments(stub, tmp_path))
    assert [r["error"] for r in records(tmp_path)] == [None] * 6
    assert len(stub.asked) == 7


def test_a_request_has_a_time_limit(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate = threading.Event()

    def reply(_: dict[str, Any]) -> tuple[int, str]:
        gate.wait(DEADLINE)
        return 200, "1"

    stub.reply = reply
    line = refused(arguments(stub, tmp_path, "--problems", "1", "--request-timeout", "0.2"), capsys)
    gate.set()
    assert "no sample could be graded" in line
    assert "APITimeoutError" in line
    assert len(stub.asked) == 3
    assert [r["correct"] for r in records(tmp_path)] == [None]


def test_a_request_that_is_refused_is_an_error(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub.reply = lambda body: (400, "the prompt is too long")
    assert "the prompt is too long" in refused(arguments(stub, tmp_path), capsys)
    assert len(stub.asked) == 6


def test_the_servers_end_is_one_line_and_keeps_what_is_finished(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def reply(_: dict[str, Any]) -> tuple[int, str]:
        if len(stub.asked) < 3:
            return 200, "1"
        stub.close()
        raise BrokenPipeError("the stub ends without an answer")

    stub.http.handle_error = lambda *_: None  # type: ignore[method-assign]
    stub.reply = reply
    line = refused(arguments(stub, tmp_path, "--concurrency", "1"), capsys)
    assert "no longer answers" in line
    assert [r["error"] for r in records(tmp_path)] == [None, None]


def test_no_server(tmp_path: Path, stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.close()
    line = refused(arguments(stub, tmp_path / "o"), capsys)
    assert f"no server answers at {stub.url}" in line
    assert "fix: start it" in line
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("models", [{"data": []}, [], {"data": "x"}], ids=["no-model", "list", "text"])
def test_what_is_no_openai_server(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str], models: object
) -> None:
    stub.models = models
    assert "not as an OpenAI-compatible server" in refused(arguments(stub, tmp_path), capsys)


def test_no_room_for_a_prompt(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(arguments(stub, tmp_path, "--max-tokens", "4096"), capsys)
    assert "--max-tokens 4096" in line
    assert "4096 tokens" in line
    assert stub.asked == []


def test_seeds_depend_on_run_problem_and_sample() -> None:
    seeds = {sample_seed(s, p, n) for s in (0, 1) for p in ("a", "b", "1") for n in (0, 1, 11)}
    assert len(seeds) == 18
