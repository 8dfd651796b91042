"""Timing on a GPU, and what a result has to say about its circumstances."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lim_sglang.tools.servers.access import without_keys


def graph_us(run: Callable[[], Any], repeats: int = 15, seconds: float = 0.5) -> tuple[float, float]:
    """Median microseconds of one replay of a CUDA graph of ``run``, and the spread of all (largest less smallest).

    At least three replays count, at most ``repeats``, and no further one once they took ``seconds``.
    """
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times: list[float] = []
    while len(times) < 5 or (len(times) < repeats + 2 and sum(times) < seconds * 1e6):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times[2:]), max(times[2:]) - min(times[2:])


def layer_us(run: Callable[[int], Any], layers: int = 12) -> float:
    """Median microseconds of one layer, from replays of a graph of ``layers`` layers; ``run`` takes the layer."""
    return graph_us(lambda: [run(layer) for layer in range(layers)])[0] / layers


def copy_tb_s() -> float:
    """Bytes read and written per second by a copying kernel (a graph would turn a copy into a slower memcpy node)."""
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / layer_us(lambda _: torch.mul(source, 1, out=target), layers=2) / 1e6


def used_mib() -> int:
    """Device memory that all processes hold."""
    free, total = torch.cuda.mem_get_info()
    return (total - free) >> 20


def _program() -> str:
    """What runs, as Python is told from the root of this file's checkout: ``-m`` and a module, or a path elsewhere."""
    path, root = Path(sys.argv[0]).resolve(), Path(__file__).resolve().parents[1]
    if not path.is_relative_to(root / "bench"):
        return sys.argv[0]
    return "-m " + ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__main__")


def _command() -> str:
    """For a shell, after what lim reads of the environment; without keys."""
    read = {name: value for name, value in os.environ.items() if name.startswith("SGLANG_LIM_")}
    settings = [f"{name}={shlex.quote(value)} " for name, value in sorted(read.items())]
    return f"{''.join(settings)}python {_program()} {shlex.join(without_keys(sys.argv[1:]))}".rstrip()


def _commit() -> str:
    """The commit of this file's checkout; empty where there is none, or no git."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--verify", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def about() -> dict[str, str]:
    """Versions, commit and command of this run; a package that is not installed is left out."""
    packages = {}
    for name in ("torch", "triton", "sglang", "flashinfer-python", "transformers"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        **packages,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "commit": os.environ.get("LIM_COMMIT") or _commit() or "unknown",
        "command": _command(),
    }
