"""One bounded run of a program, and its failures told in one line."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bench.programs.common import Outcome, execute
from bench.programs.metering import MeteredEndpoint, ProgramError


def unconnected() -> MeteredEndpoint:
    endpoint = MeteredEndpoint.__new__(MeteredEndpoint)
    endpoint._start_over()
    return endpoint


def execute_body(body: Callable[[MeteredEndpoint], Any], endpoint: MeteredEndpoint, limit: float = 60) -> Outcome:
    """A run of a program that does what it is given."""

    def run(endpoint: MeteredEndpoint, *_: object) -> Outcome:
        body(endpoint)
        return Outcome("done", [], "")

    program: Any = SimpleNamespace(run=run)
    return execute(program, endpoint, argparse.Namespace(time_limit=limit))


def test_a_program_that_never_ends_is_given_up() -> None:
    endpoint, began = unconnected(), time.monotonic()
    with pytest.raises(ProgramError, match=r"not finished after 0\.2 s; fix: a larger --time-limit"):
        execute_body(lambda _: threading.Event().wait(), endpoint, 0.2)
    assert time.monotonic() - began < 10
    assert endpoint.cancelled


def test_a_failed_request_is_told_though_its_program_waits_forever() -> None:
    def body(endpoint: MeteredEndpoint) -> None:
        with pytest.raises(ConnectionResetError), endpoint._noting_failure():
            raise ConnectionResetError("reset by peer")
        threading.Event().wait()  # as SGLang does for a state whose thread has died

    with pytest.raises(ProgramError, match="the server no longer answers: reset by peer"):
        execute_body(body, unconnected())


def test_the_first_failure_is_the_one_told() -> None:
    def body(endpoint: MeteredEndpoint) -> None:
        for error in (RuntimeError({"error": {"message": "too\nlong"}}), KeyError("text")):
            with pytest.raises(type(error)), endpoint._noting_failure():
                raise error
        raise KeyError("answer")

    with pytest.raises(ProgramError, match=r"^the server refused: too long$"):
        execute_body(body, unconnected())


def test_a_mistake_of_the_program_itself_is_told() -> None:
    assert execute_body(lambda _: None, unconnected()).answer == "done"
    with pytest.raises(ProgramError, match="ZeroDivisionError"):
        execute_body(lambda _: 1 // 0, unconnected())
