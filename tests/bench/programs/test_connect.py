"""Connecting SGLang's frontend: the server's key, and the chat template that the model's path leads to."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.programs.arms import arms, connected
from bench.programs.common import Outcome, run_alone
from bench.programs.metering import ProgramError, connect

from ...lim_sglang.info_server import serving
from ...lim_sglang.recorded_state import LIM_AFTER


def told(path: str, *states: Any) -> dict[str, Any]:
    """What a server of the model at ``path`` says of itself."""
    return {"/get_model_info": {"model_path": path}, "/server_info": {"internal_states": list(states)}}


# Keys


def test_a_server_that_wants_a_key_says_so() -> None:
    with serving(told("/m/SmolLM2"), key="secret") as server:
        with pytest.raises(ProgramError, match=rf"^{server.url} wants a key \(HTTP 401\); fix: .*--api-key or OPENAI"):
            connect(server.url)
        with pytest.raises(ProgramError, match=rf"^{server.url} wants another key .*--api-key or OPENAI_API_KEY$"):
            connect(server.url, key="other")


@pytest.mark.parametrize("place", ["flag", "environment"])
def test_the_comparison_reaches_a_server_with_a_key(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret" if place == "environment" else "other")
    key = "secret" if place == "flag" else None
    with serving(told("/m/SmolLM2", {"lim": LIM_AFTER}, {"lim": LIM_AFTER}), key="secret") as server:
        where = {"launch": False, "server": server.url, "dense_server": None, "chat_template": None, "api_key": key}
        (arm,) = arms(argparse.Namespace(**where), Console(file=io.StringIO()))
        assert arm.attention == "lim"
        assert arm.endpoint.api_key == arm.endpoint.fresh().api_key == "secret"
        state: Any = arm.lim_state()
        assert state["counters"]["decode_rows"] == 2 * LIM_AFTER["counters"]["decode_rows"]


def test_a_server_whose_ranks_disagree_is_no_dense_one() -> None:
    with serving(told("/m/SmolLM2", {"lim": LIM_AFTER}, {})) as server:
        where = {"launch": False, "server": server.url, "dense_server": None, "chat_template": None}
        with pytest.raises(ProgramError, match='1 of 2 ranks report "lim"'):
            list(arms(argparse.Namespace(**where), Console(file=io.StringIO())))


# Chat templates


@pytest.mark.parametrize(
    ("path", "given", "name", "guessed"),
    [
        ("/models/my-chat", None, "chatml", True),
        ("/models/SmolLM2-135M-Instruct-1", None, "chatml", False),
        ("Qwen/Qwen3-8B", None, "chatml", False),
        ("meta-llama/Llama-3.1-8B-Instruct", None, "llama-3-instruct", False),
        ("/models/my-chat", "llama-3-instruct", "llama-3-instruct", False),
        ("/models/my-chat", "chatml", "chatml", False),
    ],
)
def test_a_guessed_template_is_named_with_its_flag(path: str, given: str | None, name: str, guessed: bool) -> None:
    shown = Console(file=io.StringIO(), width=20)
    with serving(told(path)) as server:
        assert connected(server.url, None, given, shown).chat_template.name == name
    said = shown.file.getvalue()  # type: ignore[attr-defined]
    assert said.count("\n") == guessed
    if guessed:
        assert said.startswith(f"lim-sglang: chat template chatml: the path {path} names no model")
        assert "--chat-template NAME" in said


def test_a_template_that_does_not_exist_is_one_line() -> None:
    with pytest.raises(ProgramError, match=r"^--chat-template lama is no template .*; fix: one of .*llama-3-instruct"):
        connect("http://127.0.0.1:9", "lama")


class Silent:
    """A program that asks for nothing."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, *_: object) -> Outcome:
        return Outcome("done", [], "")


def test_a_program_alone_sends_the_key_and_names_its_template(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(told("/models/my-chat"), key="secret") as server:
        run_alone(Silent(), "", ["--server", server.url, "--api-key", "secret"])
        shown = capsys.readouterr()
        assert shown.err.count("\n") == 1
        assert "chat template chatml" in shown.err
        assert "answer: done" in shown.out
        with pytest.raises(SystemExit):
            run_alone(Silent(), "", ["--server", server.url, "--api-key", "other"])
        assert "wants another key" in capsys.readouterr().err


def test_keys_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.programs.__main__ import Record, parse, report

    words = ["--launch", "--api-key", "secret", "--server-arg=--api-key secret", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["bench.programs", *words])
    report(parse(words), Record())
    written = (tmp_path / "programs.json").read_text()
    assert "--api-key ***" in written
    assert "secret" not in written
