"""What ``pip install .`` brings: every file of every package, with those that commands and pages need."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = {"lim_sglang": ".", "lim_kernels": "kernels", "lim_patches": "patches", "lim_cpu_host": "patches"}
PACKAGES = {package: ROOT / folder for package, folder in FOLDERS.items()}


def test_the_wheel_holds_every_file_of_its_packages(tmp_path: Path) -> None:
    """It is built from a copy, so that nothing lies in the checkout afterwards."""
    copied = shutil.copytree(
        ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "runs")
    )
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(copied)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    expected = {
        str((ROOT / name).relative_to(root))
        for name in listed
        for package, root in PACKAGES.items()
        if (ROOT / name).is_relative_to(root / package)
    }
    assert {"lim_sglang/docs/metrics.md", "lim_sglang/tools/inspect/templates/inspect.html"} <= expected
    with zipfile.ZipFile(next(tmp_path.glob("lim_sglang-*.whl"))) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected
