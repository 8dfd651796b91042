"""``python .ci/audit.py PIP_AUDIT``: known vulnerabilities of what this project itself declares, as installed here.

What SGLang brings is the host's. A vulnerability is exit code 1; where the service cannot be asked, a line says so, and
the code is 0.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import requires, version


def declared() -> list[str]:
    """This project's own dependencies, extras left out, in the installed versions: ``httpx==0.28.1``."""
    names = [re.match(r"[\w.-]+", line) for line in requires("lim-sglang") or () if "extra ==" not in line]
    return [f"{name[0]}=={version(name[0])}" for name in names if name]


def ask(pip_audit: str, pins: list[str]) -> list[dict]:
    """pip-audit's verdict by package; empty when it gives none."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pins))
        file.flush()
        command = [pip_audit, "--disable-pip", "--no-deps", "--progress-spinner", "off", "-f", "json", "-r", file.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=180)
            return json.loads(done.stdout)["dependencies"]
        except (OSError, ValueError, KeyError, subprocess.TimeoutExpired):
            return []


def main(pip_audit: str) -> int:
    pins = declared()
    verdicts = {f"{found['name']}=={found['version']}": found for found in ask(pip_audit, pins) if "vulns" in found}
    bad = 0
    for pin in pins:
        known = [vulnerability["id"] for vulnerability in verdicts.get(pin, {}).get("vulns", ())]
        answer = f"vulnerable: {', '.join(known)}" if known else "no known vulnerability"
        print(f"audit: {pin}: {answer if pin in verdicts else 'nobody could be asked'}")
        bad += bool(known)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
