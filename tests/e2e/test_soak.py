"""A minute of the soak in each mode; `bench/results/soak_cpu.json` has twenty."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("mode", ["lim", "lossless"])
def test_nothing_is_lost_stuck_or_leaked(mode: str, tmp_path: Path) -> None:
    size = ["--pool", "1200", "--prompt", "500", "--output", "48", "--replays", "8"]
    options = ["--minutes", "1", "--out", str(tmp_path), "--attention", mode, "--seed", "16", *size]
    command = [sys.executable, "-m", "bench.soak", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, cwd=Path(__file__).parents[2])
    found = json.loads((tmp_path / "soak_cpu.json").read_text())[mode]
    assert found["wrong"] == [], found["examples"]
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = {"lost": 0, "stuck": 0, "leaked_tokens": 0, "differing": 0, "near_ties": 0, "healthy": True}
    assert {name: found[name] for name in wanted} == wanted
    assert found["answered"] > 8
    assert found["replayed"] > 4
    assert found["bad_inputs"] > 0
    assert (found.get("accepted_tokens", 0) > 0) == (mode == "lossless")
