"""Timing on a GPU."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch


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
