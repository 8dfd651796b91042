"""What tests of launches share: lim loaded into SGLang, and its own launch options for a model without weights."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lim_cpu_host import gpu_device
from lim_sglang.host import finders
from lim_sglang.host.launch import check_command_line
from lim_sglang.tools.servers.ports import free_port

from .tiny_llama import LLAMA

Launch = Callable[..., Any]


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.plugins import load_plugins

    monkeypatch.delenv("SGLANG_LIM_CONFIG", raising=False)
    load_plugins()
    if gpu_device() is not None:  # launches here are for a CPU, also where there is a GPU
        monkeypatch.setattr(finders, "serves_on_cpu", lambda: True)


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Makes SGLang's own launch options for a small model described by a config file alone."""

    def make(model: dict[str, Any] | None = None, **options: Any) -> Any:
        from sglang.srt.server_args import ServerArgs

        (tmp_path / "config.json").write_text(json.dumps(LLAMA | (model or {})))
        chosen = {"attention_backend": "lim", "device": "cpu", "load_format": "dummy"} | options
        server_args = ServerArgs(model_path=str(tmp_path), skip_tokenizer_init=True, **chosen)
        if hasattr(server_args, "resolve_once"):
            server_args.resolve_once()
        return server_args

    return make


CommandLine = Callable[[dict[str, Any], str], dict[str, Any]]


@pytest.fixture
def command_line(tmp_path: Path) -> CommandLine:
    """Judges a command line with lim, words as a user types them, for a model described by a config file alone."""

    def judge(model: dict[str, Any], flags: str) -> dict[str, Any]:
        from sglang.srt.server_args import ServerArgs

        (tmp_path / "config.json").write_text(json.dumps(LLAMA | model))
        parser = argparse.ArgumentParser()
        ServerArgs.add_cli_args(parser)
        fixed = ["--model-path", str(tmp_path), "--attention-backend", "lim", "--port", str(free_port())]
        return check_command_line(parser.parse_args([*fixed, *shlex.split(flags)]))

    return judge


Prepare = Callable[..., Any]


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """Makes SGLang's launch options with lim by its own parser; without a model, for the config file that is there."""

    def make(model: dict[str, Any] | None, *words: str) -> Any:
        from sglang.srt.server_args import prepare_server_args

        if model is not None:
            (tmp_path / "config.json").write_text(json.dumps(LLAMA | model))
        fixed = ["--attention-backend", "lim", "--device", "cpu", "--load-format", "dummy", "--skip-tokenizer-init"]
        return prepare_server_args(["--model-path", str(tmp_path), *fixed, *words])

    return make


ErrorLine = Callable[..., str]


@pytest.fixture
def error_line(capsys: pytest.CaptureFixture[str]) -> ErrorLine:
    """The line with which a call ends the process."""

    def line_of(judge: Callable[..., Any], *arguments: Any) -> str:
        with pytest.raises(SystemExit) as caught:
            judge(*arguments)
        assert caught.value.code == 1
        return capsys.readouterr().err.splitlines()[-1]

    return line_of
