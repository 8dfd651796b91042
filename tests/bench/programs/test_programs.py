"""What holds for every program: its own help, and a short file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.programs.__main__ import PROGRAMS

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["", *(f".{name}" for name in PROGRAMS)])
def test_every_program_has_its_own_help(name: str) -> None:
    command = [sys.executable, "-m", f"bench.programs{name}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"python -m bench.programs{name} --" in done.stdout
    assert "--time-limit" in done.stdout


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_stay_short(name: str) -> None:
    assert len((ROOT / "bench" / "programs" / f"{name}.py").read_text().splitlines()) < 80
