"""Every `python -m bench.…` that the project's pages and the modules' own descriptions name, as written."""

from __future__ import annotations

import io
import re
import runpy
import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "bench/results/README.md")),
    *sorted((ROOT / "lim_sglang" / "docs").glob("*.md")),
    *sorted(path for path in (ROOT / "bench").rglob("*.py") if path.name != "__init__.py"),
    ROOT / "bench" / "on_gpu.sh",
]
COMMANDS = sorted(
    {
        (module, tuple(re.findall(r"(?<!\S)--[a-z][a-z-]*", rest)))
        for page in PAGES
        for module, rest in re.findall(r"(?:python3?|\$python) -m (bench(?:\.\w+)*)([^`\n]*)", page.read_text())
    }
)


def test_the_scan_sees_commands() -> None:
    modules = {module for module, _ in COMMANDS}
    assert {"bench.fidelity", "bench.reasoning", "bench.programs", "bench.speed.decode_engine"} <= modules


@cache
def help_of(module: str) -> str:
    """What ``python -m MODULE --help`` prints, run in this process, where its libraries are loaded already."""
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(shown):
        patch.setattr(sys, "argv", [module, "--help"])
        with pytest.raises(SystemExit, match="0"):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    return shown.getvalue()


@pytest.mark.parametrize(
    ("module", "flags"), COMMANDS, ids=lambda part: part if isinstance(part, str) else " ".join(part)
)
def test_a_command_runs_and_takes_its_flags(module: str, flags: tuple[str, ...]) -> None:
    assert [flag for flag in flags if not re.search(rf"(?<!\S){flag}\b", help_of(module))] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU they run")
@pytest.mark.parametrize("module", ["bench.speed.decode_attention", "bench.speed.verify_attention"])
def test_a_bench_of_kernels_says_in_one_line_that_it_needs_a_gpu(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [module])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("run it on a machine with an NVIDIA GPU")
