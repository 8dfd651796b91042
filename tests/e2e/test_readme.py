"""The commands of the README and of the pages in docs, as written; only the port is another one."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from lim_sglang.tools.servers.process import ServerProcess

from .pages import DOCS, ENV, README, ROOT, block, commands, run

pytestmark = pytest.mark.e2e


def test_make_commands_are_what_ci_runs() -> None:
    run = (ROOT / ".ci" / "run").read_text()
    make = commands(block(README, "make "))
    assert make == ["make demo", "make test"]
    for command in make:
        assert re.search(rf"^{command}\b", run, re.MULTILINE), command


def test_the_other_harness_is_asked_as_the_help_says() -> None:
    """It is not installed here: its command is the one of `python -m bench.reasoning --help`, whatever the order."""
    from bench.reasoning import __main__ as reasoning

    assert reasoning.__doc__ is not None
    help_text = reasoning.__doc__.partition("lm-evaluation-harness")[2]
    install, command = commands(block(DOCS / "measuring.md", "lm_eval"))
    [shown] = [line for line in commands(help_text) if line.startswith("lm_eval")]
    assert install in commands(help_text)
    assert sorted(shlex.split(shown)) == sorted(shlex.split(command))


def test_the_gpu_commands_are_ones_that_sglang_takes() -> None:
    """Serving Qwen3-8B needs a GPU and its weights; that the flags parse and select lim needs neither."""
    pages = (README, DOCS / "lossless.md", DOCS / "serving.md")
    *before, serve = commands(block(README, "Qwen/Qwen3-8B"))
    assert before == ["pip install .", "lim-sglang doctor"]
    serves = [commands(block(page, "Qwen/Qwen3-8B"))[-1] for page in pages]
    assert all(command.startswith(serve) for command in serves)
    code = (
        "import argparse, json, shlex, sys; from sglang.srt.plugins import load_plugins; load_plugins()\n"
        "from sglang.srt.server_args import ServerArgs\n"
        "parser = argparse.ArgumentParser(); ServerArgs.add_cli_args(parser)\n"
        "found = [parser.parse_args(shlex.split(command)[2:]) for command in sys.argv[1:]]\n"
        "print(json.dumps([(args.attention_backend, args.speculative_algorithm) for args in found]))"
    )
    found = json.loads(run(shlex.join([sys.executable, "-c", code, *serves])).splitlines()[-1])
    assert found == [["lim", None], ["lim", "LIM"], ["lim", None]]


def test_the_cpu_commands_serve_and_answer(tmp_path: Path) -> None:
    activate, doctor, serve = commands(block(README, "lim-sglang model"))
    assert activate == "source .venv/bin/activate"
    assert run(doctor).splitlines()[-1] == "lim can serve here"
    with Served(serve, tmp_path) as server:
        server.wait_ready()
        answer = json.loads(run(block(README, "curl").replace("30000", str(server.port))))
    assert answer["choices"][0]["message"]["content"]


def test_the_lossless_commands_serve_and_answer(tmp_path: Path) -> None:
    """Within the budget every draft is right, so a round is as long as it can be."""
    page = DOCS / "lossless.md"
    activate, serve = commands(block(page, "lim-sglang model"))
    assert activate == "source .venv/bin/activate"
    with Served(serve, tmp_path) as server:
        server.wait_ready()
        answer = json.loads(run(block(page, "curl").replace("30000", str(server.port))))
    shown = page.read_text().split("```\n{", 1)[1].split("```", 1)[0]
    for key in ("spec_num_correct_drafts", "spec_num_proposed_drafts", "spec_verify_ct"):
        assert f'"{key}":{answer["meta_info"][key]}' in shown
    assert json.dumps(answer["text"]) in shown


class Served(ServerProcess):
    """The server of a command as written, on another port."""

    def __init__(self, serve: str, folder: Path) -> None:
        super().__init__("", env=ENV, log_path=folder / "server.log", start_timeout=600)
        assert "30000" in serve
        self._serve = serve

    def command(self) -> list[str]:
        return ["bash", "-c", f"exec {self._serve.replace('30000', str(self.port))}"]
