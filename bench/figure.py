"""The project's figure: a long generation, and steps by what a batch holds; ``overview.png``.

    python -m bench.figure [--results bench/results]

Left: tokens per second of 16 requests as they generate. The runs of lim and of the lossless mode were on different
GPUs, so each is drawn beside the dense attention of its own run. Right: steps on one H200, from ``lossless.csv`` and
``lossless_large.csv``, whose arms were measured in one run each; of the lossless mode, milliseconds per token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from bench import driver
from bench.driver import read_rows
from bench.speed.report import save_lines

COLORS = {"dense": "tab:gray", "lim": "tab:orange", "lossless": "tab:blue"}
LINES = {"H100": "--", "H200": "-"}
MISSING = {"lim": " (no run at 16 × 40,000)"}


def main() -> None:
    _, results = driver.results_folder(__doc__)
    plt.rcParams["font.size"] = 11
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6))
    draw_generation(left, results)
    draw_steps(right, results)
    save_lines(figure, results / "overview.png", fontsize=10, frameon=False)
    print(results / "overview.png")


def draw_generation(axes: Any, results: Path) -> None:
    """Both long generations, each with its own dense attention."""
    for file, arm in (("long_decode", "lim"), ("long_lossless", "lossless")):
        rows = read_rows(results / f"{file}.csv")
        gpu = rows[0]["gpu"].split()[1]
        for name in ("dense", arm):
            speed = [int(row["batch"]) * 1e3 / float(row[f"{name}_ms"]) for row in rows]
            contexts = [int(row["context"]) / 1e3 for row in rows]
            axes.plot(contexts, speed, LINES[gpu], color=COLORS[name], linewidth=2, label=f"{name}, {gpu}")
    axes.axvline(2.048, color="black", linewidth=0.8, linestyle=":", label="K = 2,048")
    axes.set(xlabel="context, thousand tokens", ylabel="tokens per second", title="16 requests while they generate")


def draw_steps(axes: Any, results: Path) -> None:
    """Milliseconds against the tokens that a batch holds, one H200; drafts accepted as measured greedily."""
    rows = [row for file in ("lossless", "lossless_large") for row in read_rows(results / f"{file}.csv")]
    rows = [row for row in rows if row["measured"] == "greedy"]
    rows.sort(key=held)
    for arm, color in COLORS.items():
        points = [(held(row), float(row[f"{arm}_ms"])) for row in rows if row[f"{arm}_ms"]]
        axes.plot(*zip(*points, strict=True), "o-", color=color, linewidth=2, label=arm + MISSING.get(arm, ""))
    axes.set_xscale("log")
    axes.set_xticks([held(row) for row in rows], [f"{row['batch']} ×\n{int(row['context']):,}" for row in rows])
    axes.minorticks_off()
    axes.set(xlabel="batch × context", ylabel="milliseconds per token", title="A step on one H200, K = 2,048")


def held(row: dict[str, str]) -> int:
    """Cached tokens of a batch."""
    return int(row["batch"]) * int(row["context"])


if __name__ == "__main__":
    main()
