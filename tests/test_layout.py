"""Rules of the house that a reader cannot see from one file."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

from lim_sglang.compat import TESTED_SGLANG

ROOT = Path(__file__).parents[1]


def test_import_kernels_never_finds_this_project() -> None:
    """Hugging Face's package ``kernels`` is a dependency of SGLang; the folder of that name must not shadow it."""
    code = "import kernels; print([*kernels.__path__])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert str(ROOT / "kernels") not in found.stdout


def test_the_folder_kernels_is_no_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "kernels.py").exists()


def imported_by(folder: Path) -> set[str]:
    """Top-level names of all modules that the files below ``folder`` import."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return names


def test_kernels_import_neither_sglang_nor_the_plugin() -> None:
    imported = imported_by(ROOT / "kernels")
    assert "torch" in imported, "the scan must see imports at all"
    assert not imported & {"sglang", "lim_sglang", "lim_patches"}


def test_only_compat_patches_plugin_and_backends_import_sglang() -> None:
    allowed = {"compat.py", "plugin.py", "doctor.py"}
    importers = {
        path.name
        for path in (ROOT / "lim_sglang").glob("*.py")
        if any(
            (node.module or "").split(".")[0] == "sglang"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom)
        )
    }
    assert importers == allowed


def test_tested_range_is_the_one_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    first, last = TESTED_SGLANG
    assert project["optional-dependencies"]["sglang"] == [f"sglang>={first},<={last}"]
    assert not any(requirement.startswith(("sglang", "torch")) for requirement in project["dependencies"])
