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

from lim_sglang.tools.common import CommandError
from lim_sglang.tools.demo import command as demo
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
    end = [chunk(finish_reason="stop", matched_stop=2), SimpleNamespace(choices=[], usage=usage)]
    stream = [chunk(""), chunk("[b]1", "[b]1"), chunk(" + 1\n", " + 1\n"), *end]
    screen, firsts = io.StringIO(), []
    answer = demo._read_stream(stream, lambda: firsts.append(screen.getvalue()), Console(file=screen))
    assert (answer.text, answer.pieces) == ("[b]1 + 1\n", ["[b]1", " + 1\n"])
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
        with pytest.raises(CommandError, match="the server counts no prompt tokens"):  # it answered, with nothing
            demo._converse(server.url, "secret", chat, arguments(), quiet)
        with pytest.raises(openai.AuthenticationError):
            demo._converse(server.url, None, chat, arguments(), quiet)


# Exit codes


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 0, ""),
        (KeyboardInterrupt(), 130, "lim-sglang: interrupted; nothing is left running\n"),
        (CommandError("no\nway"), 1, "lim-sglang: error: no way (server logs: {logs})\n"),
        (ServerError("it ended (log: {logs}/lim.log)"), 1, "lim-sglang: error: it ended (log: {logs}/lim.log)\n"),
        (OSError("disk"), 1, "lim-sglang: error: OSError: disk (server logs: {logs})\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_end_is_one_line_and_only_failures_leave_their_logs(
    error: BaseException | None, code: int, line: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    def run(args: argparse.Namespace, logs: Path) -> None:
        if error is not None:
            raise type(error)(str(error).format(logs=logs))

    monkeypatch.setattr(demo.tempfile, "mkdtemp", lambda **_: str(tmp_path))
    monkeypatch.setattr(demo, "_run", run)
    assert run_demo(arguments()) == code
    assert capsys.readouterr().err == line.format(logs=tmp_path)
    assert tmp_path.exists() == (code == 1)
