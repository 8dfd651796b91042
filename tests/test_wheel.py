"""What ``pip install .`` brings: every package, and every file that commands and pages need."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"lim_sglang": ".", "lim_kernels": "kernels", "lim_patches": "patches", "lim_cpu_host": "patches"}
PACKAGES = {package: ROOT / folder for package, folder in FOLDERS.items()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing lies in the checkout afterwards."""
    folder = tmp_path_factory.mktemp("wheel")
    copied = shutil.copytree(
        ROOT, folder / "source", ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "runs")
    )
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(copied)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("lim_sglang-*.whl"))


def test_the_wheel_holds_every_file_of_its_packages(wheel: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    expected = {
        str((ROOT / name).relative_to(root))
        for name in listed
        for package, root in PACKAGES.items()
        if (ROOT / name).is_relative_to(root / package)
    }
    assert {"lim_sglang/docs/metrics.md", "lim_sglang/tools/inspect/templates/inspect.html"} <= expected
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected


def test_a_page_is_rendered_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """The templates are found where the wheel was unpacked, not in this checkout."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}]\n"
        "from lim_sglang.tools.inspect import page\n"
        "html = page.render_page({'title': 'x'})\n"
        "print(page.__file__, '<html' in html, len(html) > 10_000)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == [str(tmp_path / "lim_sglang/tools/inspect/page.py"), "True", "True"], done.stderr
