"""CI's audit fails on a known vulnerability of our own dependencies, and only on that."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .ci_script import load


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    return load("audit")


def tool(folder: Path, says: str) -> str:
    """An executable in pip-audit's place."""
    path = folder / "pip-audit"
    path.write_text(f"#!{sys.executable}\nprint({says!r})\n")
    path.chmod(0o755)
    return str(path)


def answer(audit: ModuleType, vulnerable: str = "", skipped: bool = False) -> str:
    def entry(pin: str) -> dict[str, Any]:
        name, number = pin.split("==")
        if skipped:
            return {"name": name, "skip_reason": "Dependency not found"}
        return {"name": name, "version": number, "vulns": [{"id": "CVE-1"}] if name == vulnerable else []}

    return json.dumps({"dependencies": [entry(pin) for pin in audit.declared()], "fixes": []})


def test_only_what_this_project_declares_is_asked_about(audit: ModuleType) -> None:
    assert [pin.split("==")[0] for pin in audit.declared()] == ["httpx", "openai", "rich"]


def test_a_vulnerability_fails(audit: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main(tool(tmp_path, answer(audit, "httpx"))) == 1
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("audit: httpx==")
    assert first.endswith(": vulnerable: CVE-1")
    assert [line.split(": ")[-1] for line in others] == ["no known vulnerability"] * 2


def test_none_passes(audit: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main(tool(tmp_path, answer(audit))) == 0
    assert capsys.readouterr().out.count(": no known vulnerability") == 3


@pytest.mark.parametrize("reached", ["garbage", "skipped", "missing"])
def test_nobody_to_ask_is_told_and_passes(
    audit: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], reached: str
) -> None:
    says = answer(audit, skipped=True) if reached == "skipped" else "ConnectionError"
    program = str(tmp_path / "absent") if reached == "missing" else tool(tmp_path, says)
    assert audit.main(program) == 0
    assert capsys.readouterr().out.count(": nobody could be asked") == 3
