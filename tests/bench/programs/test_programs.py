"""What holds for every program: its own help, and a short file."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.programs.__main__ import PROGRAMS

from ..help_of import help_of

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["", *(f".{name}" for name in PROGRAMS)])
def test_every_program_has_its_own_help(name: str) -> None:
    shown = help_of(f"bench.programs{name}")
    assert f"python -m bench.programs{name} --" in shown
    assert "--time-limit" in shown


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_stay_short(name: str) -> None:
    assert len((ROOT / "bench" / "programs" / f"{name}.py").read_text().splitlines()) < 80
