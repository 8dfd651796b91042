"""One bounded run of a program, its failures told in one line, and whole numbers as flags."""

from __future__ import annotations

import argparse
import threading
import time
from typing import Any

import pytest

from bench.programs.common import Outcome, execute, reason_of, whole
from bench.programs.metering import MeteredEndpoint, ProgramError


class Doing:
    """A program that does what it is made with."""

    def __init__(self, body: Any) -> None:
        self.body = body

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, endpoint: MeteredEndpoint, args: argparse.Namespace, show: Any) -> Outcome:
        self.body(endpoint)
        return Outcome("done", [], "")


def unconnected() -> MeteredEndpoint:
    endpoint = MeteredEndpoint.__new__(MeteredEndpoint)
    endpoint._start_over()
    return endpoint


def limit(seconds: float) -> argparse.Namespace:
    return argparse.Namespace(time_limit=seconds)


def test_a_program_that_ends_has_an_outcome() -> None:
    assert execute(Doing(lambda _: None), unconnected(), limit(30)).answer == "done"


def test_a_program_that_never_ends_is_given_up() -> None:
    endpoint, began = unconnected(), time.monotonic()
    with pytest.raises(ProgramError, match=r"not finished after 0\.2 s; fix: a larger --time-limit"):
        execute(Doing(lambda _: threading.Event().wait()), endpoint, limit(0.2))
    assert time.monotonic() - began < 10
    assert endpoint.cancelled


def test_a_failed_request_is_told_though_its_program_waits_forever() -> None:
    def body(endpoint: MeteredEndpoint) -> None:
        with pytest.raises(ConnectionResetError), endpoint._noting_failure():
            raise ConnectionResetError("reset by peer")
        threading.Event().wait()  # as SGLang does for a state whose thread has died

    with pytest.raises(ProgramError, match="the server no longer answers: reset by peer"):
        execute(Doing(body), unconnected(), limit(60))


def test_the_first_failure_is_the_one_told() -> None:
    def body(endpoint: MeteredEndpoint) -> None:
        for error in (RuntimeError({"error": {"message": "too\nlong"}}), KeyError("text")):
            with pytest.raises(type(error)), endpoint._noting_failure():
                raise error
        raise KeyError("answer")

    with pytest.raises(ProgramError, match=r"^the server refused: too long$"):
        execute(Doing(body), unconnected(), limit(60))


def test_a_mistake_of_the_program_itself_is_told() -> None:
    with pytest.raises(ProgramError, match="ZeroDivisionError"):
        execute(Doing(lambda _: 1 // 0), unconnected(), limit(60))


def test_reasons_are_one_line() -> None:
    assert reason_of(ValueError("a\n  b")) == "ValueError: a b"
    assert reason_of(RuntimeError({"object": "error"})) == "the server refused: {'object': 'error'}"


def test_whole_numbers_include_their_ends() -> None:
    assert [whole(-2, 3)(text) for text in ("-2", "3")] == [-2, 3]
    for text in ("-3", "4", "", "1.0", "٣", "--1"):
        with pytest.raises(argparse.ArgumentTypeError):
            whole(-2, 3)(text)
