"""The lossless mode's speed against accepted drafts and against what a batch holds: ``lossless.png``.

    python -m bench.speed.lossless_plot [--results bench/results]

Reads every ``lossless*.csv`` that ``bench.speed.lossless`` wrote there. Left: every shape that has several shares.
Right: every shape, at the share that was measured greedily at the same share of the context.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from bench.speed.report import Row, read, save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("bench/results"), help="folder (bench/results)")
    results = parser.parse_args().results
    plot(rows_of(results), results / "lossless.png")


def rows_of(results: Path) -> list[Row]:
    """All rows with a speed-up; drafts choose sets in every step unless a file says otherwise."""
    files = [path for path in sorted(results.glob("lossless*.csv")) if "tokens" not in path.stem]
    found = [row for path in files for row in read(path)]
    return [row for row in found if row["speedup"].replace(".", "").isdigit() and row.get("drafts_by_set", "1") == "1"]


def plot(rows: list[Row], path: Path) -> None:
    figure, (by_share, by_tokens) = plt.subplots(1, 2, figsize=(11, 4))
    shapes = defaultdict(list)
    for row in rows:
        shapes[short(row), int(row["batch"]), int(row["context"])].append(row)
    for (gpu, batch, context), of_shape in sorted(shapes.items()):
        points = sorted((float(row["share"]), float(row["speedup"])) for row in of_shape)
        if len(points) > 1:
            by_share.plot(*zip(*points, strict=True), marker="o", label=f"{gpu}, {batch} × {context:,}")
    by_gpu = defaultdict(list)
    for row in rows:
        if "greedy" in row["measured"]:
            by_gpu[short(row)].append((int(row["batch"]) * int(row["context"]), float(row["speedup"])))
    for gpu, found in sorted(by_gpu.items()):
        by_tokens.plot(*zip(*sorted(found), strict=True), marker="o", label=gpu)
    by_share.set(xlabel="share of drafts accepted, given those before", ylabel="speed-up over dense attention")
    by_tokens.set(xlabel="cached tokens of the batch", title="at the acceptance measured greedily")
    by_tokens.set_xscale("log")
    for axes in (by_share, by_tokens):
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save(figure, path)


def short(row: Row) -> str:
    """``2 × H100`` for two ranks on ``NVIDIA H100 80GB HBM3``."""
    gpu = row["gpu"].replace("NVIDIA ", "").split()[0]
    return gpu if row.get("tp", "1") == "1" else f"{row['tp']} × {gpu}"


if __name__ == "__main__":
    main()
