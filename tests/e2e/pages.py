"""The commands of the README and of the pages in docs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "lim_sglang" / "docs"
README = ROOT / "README.md"
BIN = Path(sys.executable).parent
ENV = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}


def commands(block: str) -> list[str]:
    """Lines of a block, continued ones joined, comments cut."""
    return [line.split(" #")[0].strip() for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def block(page: Path, text: str) -> str:
    """The one block of commands on a page that holds this text."""
    [found] = [block for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL) if text in block]
    return str(found)


def run(command: str) -> str:
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return done.stdout
