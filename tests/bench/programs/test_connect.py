"""Connecting SGLang's frontend: the server's key, and the chat template that the model's path leads to."""

from __future__ import annotations

import argparse
import io
from typing import Any

import pytest
from rich.console import Console

from bench.programs.arms import arms, lim_state
from bench.programs.common import Outcome, run_alone
from bench.programs.metering import ProgramError, connect

from ...lim_sglang.info_server import serving
from ...lim_sglang.recorded_state import LIM_AFTER


def told(path: str, *states: Any) -> dict[str, Any]:
    """What a server of the model at ``path`` says of itself."""
    return {"/get_model_info": {"model_path": path}, "/server_info": {"internal_states": list(states)}}


def arm_of(url: str, key: str | None = None) -> Any:
    """The only arm of ``--server URL``."""
    args = argparse.Namespace(launch=False, server=url, dense_server=None, chat_template=None, api_key=key)
    (arm,) = arms(args, Console(file=io.StringIO()))
    return arm


def test_a_server_that_wants_a_key_says_so() -> None:
    with serving(told("/m/SmolLM2"), key="secret") as server:
        with pytest.raises(ProgramError, match=rf"^{server.url} wants a key \(HTTP 401\); fix: .*--api-key or OPENAI"):
            connect(server.url)
        with pytest.raises(ProgramError, match=rf"^{server.url} wants another key .*--api-key or OPENAI_API_KEY$"):
            connect(server.url, key="other")


@pytest.mark.parametrize(("flag", "environment"), [("secret", "other"), (None, "secret")])
def test_the_comparison_reaches_a_server_with_a_key(
    monkeypatch: pytest.MonkeyPatch, flag: str | None, environment: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", environment)
    with serving(told("/m/SmolLM2", {"lim": LIM_AFTER}, {"lim": LIM_AFTER}), key="secret") as server:
        arm = arm_of(server.url, flag)
        assert arm.attention == "lim"
        assert arm.endpoint.api_key == arm.endpoint.fresh().api_key == "secret"
        state: Any = lim_state(arm.endpoint)
        assert state["counters"]["decode_rows"] == 2 * LIM_AFTER["counters"]["decode_rows"]


def test_a_server_whose_ranks_disagree_is_no_dense_one() -> None:
    disagreeing = told("/m/SmolLM2", {"lim": LIM_AFTER}, {})
    with serving(disagreeing) as server, pytest.raises(ProgramError, match='1 of 2 ranks report "lim"'):
        arm_of(server.url)


@pytest.mark.parametrize(
    ("path", "given", "name", "guessed"),
    [
        ("/models/my-chat", None, "chatml", True),
        ("/models/SmolLM2-135M-Instruct-1", None, "chatml", False),
        ("meta-llama/Llama-3.1-8B-Instruct", None, "llama-3-instruct", False),
        ("/models/my-chat", "llama-3-instruct", "llama-3-instruct", False),
    ],
)
def test_a_guessed_template_is_named_with_its_flag(
    path: str, given: str | None, name: str, guessed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(told(path)) as server:
        assert connect(server.url, given).chat_template.name == name
    said = capsys.readouterr().err
    assert said.count("\n") == guessed
    if guessed:
        assert said.startswith(f"lim-sglang: chat template chatml: the path {path} names no model")
        assert "--chat-template NAME" in said


def test_what_cannot_be_connected_costs_one_line() -> None:
    with pytest.raises(ProgramError, match=r"^--chat-template lama is no template .*; fix: one of .*llama-3-instruct"):
        connect("http://127.0.0.1:9", "lama")
    with pytest.raises(ProgramError, match=r"^no server answers at http://127\.0\.0\.1:9 \(.*\); fix: start it"):
        connect("http://127.0.0.1:9")


class Silent:
    """A program that asks for nothing."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, *_: object) -> Outcome:
        return Outcome("done", [], "the text")


def test_a_program_alone_sends_the_key_and_tells_its_answer(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(told("/models/SmolLM2"), key="secret") as server:
        run_alone(Silent(), "", ["--server", server.url, "--api-key", "secret"])
        shown = capsys.readouterr().out
        assert shown.startswith("the text\n\n\nanswer: done\n")
        assert "0 requests, 0 prompt tokens (0 of them cached), 0 generated, " in shown
        with pytest.raises(SystemExit):
            run_alone(Silent(), "", ["--server", server.url, "--api-key", "other"])
        assert "wants another key" in capsys.readouterr().err
