"""A minute of the soak, lossless on the oldest tested release and lim on the newest; twenty: `soak_cpu.json`."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from lim_sglang.host.versions import TESTED_SGLANG

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("forked")]


def test_nothing_is_lost_stuck_or_leaked(model_path: Path, tmp_path: Path) -> None:
    mode = "lossless" if version("sglang") == TESTED_SGLANG["cpu"][0] else "lim"
    size = ["--pool", "1200", "--prompt", "500", "--output", "48", "--replays", "8"]
    size += ["--model", str(model_path), "--budget", "256"]
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
