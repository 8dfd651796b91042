"""Every `python -m bench.…` that the project's pages and the modules' own descriptions name, as written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .help_of import help_of

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


@pytest.mark.parametrize(
    ("module", "flags"), COMMANDS, ids=lambda part: part if isinstance(part, str) else " ".join(part)
)
def test_a_command_runs_and_takes_its_flags(module: str, flags: tuple[str, ...]) -> None:
    assert [flag for flag in flags if not re.search(rf"(?<!\S){flag}\b", help_of(module))] == []
