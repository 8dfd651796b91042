"""Make a module an SGLang plugin for the engines and servers that benches and tests start."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def add_metadata(folder: Path, name: str, module: str) -> Path:
    """Write what makes SGLang call ``register()`` of ``module`` wherever ``folder``, returned, is on Python's path.

    Spawned processes take over ``sys.path``.
    """
    metadata = folder / f"{name.replace('-', '_')}-0.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0\n")
    (metadata / "entry_points.txt").write_text(f"[sglang.srt.plugins]\n{name} = {module}:register\n")
    return folder


def install(folder: Path, module: str, variable: str) -> Path:
    """Make this process and those it spawns load ``module``, of ``bench``, from metadata in ``folder``.

    Returns an empty file that the environment names to them by ``variable``.
    """
    file = folder / "exchange"
    file.touch()
    os.environ[variable] = str(file)
    name = "lim-bench-" + module.rpartition(".")[2].replace("_", "-")
    sys.path[:0] = [str(add_metadata(folder, name, module)), str(Path(__file__).parents[1])]
    return file
