"""The demo's command without a server: its stream, flags and exit codes."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from rich.console import Console

from lim_sglang.tools.demo import command as demo
from lim_sglang.tools.demo.chat import DemoError
from lim_sglang.tools.demo.command import run_demo
from lim_sglang.tools.demo.report import Turn
from lim_sglang.tools.servers.process import ServerError, ServerProcess

from ...info_server import serving


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(words)


# Stream


def chunk(text: str | None = None, piece: str | None = None, **finish: Any) -> SimpleNamespace:
    logprobs = None if piece is None else SimpleNamespace(content=[SimpleNamespace(token=piece)])
    facts = {"finish_reason": None, "logprobs": logprobs, "delta": SimpleNamespace(content=text)} | finish
    return SimpleNamespace(choices=[SimpleNamespace(**facts)], usage=None)


def test_stream_is_collected_and_printed_as_it_is() -> None:
    usage = SimpleNamespace(prompt_tokens=5, completion_tokens=3, prompt_tokens_details=None)
    end = chunk(finish_reason="stop", matched_stop=2)
    stream = [
        chunk(""),
        chunk("[b]1", "[b]1"),
        chunk(" + 1\n", " + 1\n"),
        end,
        SimpleNamespace(choices=[], usage=usage),
    ]
    screen, firsts = io.StringIO(), []
    answer = demo._read_stream(stream, lambda: firsts.append(screen.getvalue()), Console(file=screen))
    assert answer.text == "[b]1 + 1\n"
    assert answer.pieces == ["[b]1", " + 1\n"]
    assert (answer.stop_id, answer.usage) == (2, usage)
    assert firsts[0] == ""
    assert screen.getvalue() == "[b]1 + 1\n\n"


# A server with a key


@pytest.mark.parametrize(
    ("options", "key"),
    [(["--api-key", "server's"], "server's"), (["--admin-api-key=boss"], "boss"), ([], "environment's")],
)
def test_the_demo_uses_the_key_of_its_server(monkeypatch: pytest.MonkeyPatch, options: list[str], key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "environment's")
    assert demo._key(ServerProcess("model", options, log_path=Path("log"))) == key


def test_both_servers_get_their_key() -> None:
    chat: Any = SimpleNamespace(opening=list, render=lambda *_, **__: [1, 2])
    turn, quiet = Turn([1, 2], [3], 0, 1.0, "x"), Console(quiet=True)
    judged = {"input_token_logprobs": [[0, 2], [0, 3]], "input_top_logprobs": [None, [[0, 3]]]}
    bodies = {"/v1/chat/completions": {}, "/generate": {"meta_info": judged}}
    with serving(bodies, key="secret") as server:
        assert demo._agreement_of(server.url, "secret", turn, 1, quiet) == 1
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            demo._agreement_of(server.url, None, turn, 1, quiet)
        with pytest.raises(DemoError, match="the server counts no prompt tokens"):  # it answered, with nothing
            demo._converse(server.url, "secret", chat, arguments(), quiet)
        with pytest.raises(openai.AuthenticationError):
            demo._converse(server.url, None, chat, arguments(), quiet)


# Flags, machine, exit codes


@pytest.mark.parametrize("value", ["0", "-3", "x", "1.5", ""])
def test_numbers_must_be_positive(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(f"--turns={value}")
    assert f"{value!r} is not a whole number above 0" in capsys.readouterr().err


def finish(monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> int:
    def run(args: argparse.Namespace, logs: Path) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(demo, "_run", run)
    return run_demo(arguments())


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "lim-sglang-demo-1"
    folder.mkdir()
    monkeypatch.setattr(demo.tempfile, "mkdtemp", lambda **_: str(folder))
    return folder


def test_success_leaves_no_logs(monkeypatch: pytest.MonkeyPatch, logs: Path) -> None:
    assert finish(monkeypatch, None) == 0
    assert not logs.exists()


def test_ctrl_c_is_130_and_one_line(
    monkeypatch: pytest.MonkeyPatch, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finish(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "lim-sglang: interrupted; nothing is left running\n"
    assert not logs.exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DemoError("no\nway"), "lim-sglang: error: no way (server logs: {logs})"),
        (
            ServerError("the server ended: x (log: {logs}/lim.log)"),
            "lim-sglang: error: the server ended: x (log: {logs}/",
        ),
        (OSError("disk"), "lim-sglang: error: OSError: disk (server logs: {logs})"),
    ],
)
def test_failure_is_one_line_with_the_log(
    monkeypatch: pytest.MonkeyPatch, logs: Path, capsys: pytest.CaptureFixture[str], error: Exception, expected: str
) -> None:
    named = type(error)(str(error).format(logs=logs))
    assert finish(monkeypatch, named) == 1
    line = capsys.readouterr().err
    assert line.startswith(expected.format(logs=logs))
    assert line.count("\n") == 1
    assert logs.exists()
