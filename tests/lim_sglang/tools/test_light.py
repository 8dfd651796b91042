"""`lim-sglang --help` asks every command for its flags, so none may cost the seconds that its libraries take."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("command", ["calibrate", "demo", "inspect"])
def test_import_is_light(command: str) -> None:
    heavy = "{'torch', 'transformers', 'openai'}"
    code = f"import sys, lim_sglang.tools.{command}.command; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
