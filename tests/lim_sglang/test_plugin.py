"""The entry point: light, idempotent, and heard when it cannot register."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from lim_sglang import plugin
from lim_sglang.host import ranks, versions
from lim_sglang.host.host_check import HostName, check
from lim_sglang.host.names import HOST_NAMES


def run(code: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=600)


def test_importing_the_entry_point_is_light() -> None:
    code = (
        "import sys, lim_sglang.plugin, lim_sglang.layer_plan\n"
        "print([m for m in ('torch', 'sglang', 'rich', 'httpx') if m in sys.modules])"
    )
    assert run(code).stdout.strip() == "[]"


# What goes before has registered the plugin; SGLang would go on to say that lim is an invalid choice.
BROKEN_HOST = """
import sys
from lim_sglang import plugin
from lim_sglang.host import host_check, versions
broken = host_check.HostName("sglang.srt.server_args", "ServerArgs.renamed_in_the_next_release")
versions.HOST_NAMES = (*versions.HOST_NAMES, broken)
plugin._registered = False
register()
"""


def test_register_adds_no_model_code_is_idempotent_and_ends_the_launch_on_a_host_that_lacks_a_name() -> None:
    """``import sglang`` itself loads torch; register() must add neither backends nor models to that."""
    code = """
import json, sys
from sglang.srt import server_args
from sglang.srt.plugins import load_plugins
from sglang.srt.plugins.hook_registry import HookRegistry
before = set(sys.modules)
load_plugins()
from lim_sglang.plugin import register
register()
heavy = [m for m in set(sys.modules) - before if m.startswith(("sglang.srt.models", "sglang.srt.model_executor",
    "sglang.srt.managers", "flashinfer", "triton")) or m.endswith("_backend")]
hooks = {target: len(found) for target, found in HookRegistry._hooks.items() if "ServerArgs" in target}
print(json.dumps([heavy, server_args.ATTENTION_BACKEND_CHOICES.count("lim"), hooks]))
"""
    done = run(code + BROKEN_HOST, "--model-path", "x", "--attention-backend", "lim")
    heavy, choices, hooks = json.loads(done.stdout.strip().splitlines()[-1])
    assert heavy == []
    assert choices == 1
    assert len(hooks) == 3
    assert set(hooks.values()) == {1}
    # then, on a host that lacks a name
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("lim-sglang: error: SGLang ")
    assert "Traceback" not in done.stderr


def test_every_host_name_is_found() -> None:
    assert [f"{v.host_name.path}: {v.problem}" for v in check(HOST_NAMES) if not v.ok] == []


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (HostName("sglang.srt.plugins.hook_registry", "HookRegistry.subscribe"), "no subscribe in"),
        (HostName("sglang.srt.plugins.hook_registry", "HookRegistry.register", ("priority",)), "no parameter prio"),
        (HostName("sglang.srt.plugins.gone", "anything"), "no module sglang.srt.plugins.gone"),
        (HostName("not_installed_at_all", "anything"), "no module not_installed_at_all"),
    ],
    ids=["name", "parameter", "module", "package"],
)
def test_a_missing_host_name_is_named(name: HostName, problem: str) -> None:
    assert problem in check([name])[0].problem


def test_an_unsupported_host_registers_nothing_and_logs_one_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = HostName("sglang.srt.server_args", "ServerArgs.renamed_in_the_next_release")
    monkeypatch.setattr(versions, "HOST_NAMES", (*versions.HOST_NAMES, broken))
    monkeypatch.setattr(plugin, "_registered", False)
    monkeypatch.setattr(plugin, "_register_all", lambda: pytest.fail("it went on"))
    monkeypatch.setattr(sys, "argv", ["sglang", "--attention-backend", "triton"])
    plugin.register()
    [line] = [record.getMessage() for record in caplog.records if record.name == "lim_sglang.plugin"]
    for part in ("renamed_in_the_next_release", "install sglang>=0.5.16", "lim-sglang doctor"):
        assert part in line


@pytest.fixture
def level_is_restored() -> Iterator[None]:
    logger = logging.getLogger("lim_sglang")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.mark.usefixtures("level_is_restored")
@pytest.mark.parametrize("first", [True, False], ids=["rank 0", "another"])
def test_one_rank_speaks(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, first: bool) -> None:
    def build(runner: Any) -> str:
        logger = logging.getLogger("lim_sglang.attention.flashinfer")
        logger.warning("what all ranks would say")
        logger.error("what goes wrong here")
        return f"built for {runner.model}"

    monkeypatch.setattr(ranks, "is_first_rank", lambda: first)
    monkeypatch.setattr("lim_sglang.attention.build", build)
    assert plugin.create_backend(SimpleNamespace(model="a runner", server_args=None)) == "built for a runner"
    assert ("what all ranks would say" in caplog.messages) is first
    assert "what goes wrong here" in caplog.messages


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--attention-backend", "lim"], True),
        (["--decode-attention-backend=lim"], True),
        (["--attention-backend", "flashinfer", "--served-model-name", "lim"], False),
        (["--attention-backend"], False),
    ],
    ids=["two words", "one word", "another option", "no value"],
)
def test_asks_for_lim(argv: list[str], expected: bool) -> None:
    assert plugin.asks_for_lim(argv) is expected
