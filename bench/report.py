"""Plots and one Markdown page from the results that the benchmarks left.

    python bench/report.py [--results bench/results]

Reads ``decode_attention.csv`` and ``decode_engine.csv`` where they exist; writes ``speed.md`` and plots beside them.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Row = dict[str, str]
ATTENTION_COLUMNS = {
    "batch": "batch",
    "context": "context",
    "budget": "K",
    "dense_us": "dense layer, µs",
    "select_us": "select layer, µs",
    "select_beyond_dense": "beyond its dense attention",
    "sparse": "sparse layer, µs",
    "step_dense_us": "36 dense layers, µs",
    "lim_us": "a step of lim, µs",
    "speedup": "speed-up",
    "byte_bound_share": "of the byte bound",
}
ENGINE_COLUMNS = {
    "batch": "batch",
    "context": "context",
    "budget": "K",
    "dense_ms": "dense, ms per step",
    "lim_ms": "lim, ms per step",
    "speedup": "speed-up",
    "byte_bound_share": "of the byte bound",
    "extra_mib": "extra MiB",
}
DENSE_LAYERS, SELECT_LAYERS, SPARSE_LAYERS = 2, 2, 32  # of the benchmark's 36


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    results = parser.parse_args().results
    attention = [row for row in read(results / "decode_attention.csv") if is_number(row["speedup"])]
    engine = [row for row in read(results / "decode_engine.csv") if is_number(row["speedup"])]
    if not attention and not engine:
        parser.error(f"{results} holds neither decode_attention.csv nor decode_engine.csv; run the benchmarks first")
    parts = ["# Speed, as measured\n"]
    if engine:
        parts += [f"## SGLang's engine, {engine[0]['gpu']}\n", table(engine, ENGINE_COLUMNS), about(results, "engine")]
    if attention:
        for row in attention:
            row["sparse"] = row["sparse_triton_us"] or row["sparse_us"]
        plot_speedup(attention, results / "speedup.png")
        plot_step(attention, results / "step.png")
        plot_bound(attention, results / "byte_bound.png")
        parts += [
            f"## Attention of one step, {attention[0]['gpu']}\n",
            table(attention, ATTENTION_COLUMNS),
            "![speed-up against context](speedup.png)\n\n![where a step's attention goes](step.png)\n\n"
            "![share of the byte bound](byte_bound.png)\n",
            about(results, "attention"),
        ]
    (results / "speed.md").write_text("\n".join(parts))
    print(results / "speed.md")


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def about(results: Path, name: str) -> str:
    path = results / f"decode_{name}.json"
    if not path.exists():
        return ""
    facts = json.loads(path.read_text())["about"]
    return "".join(f"- {key}: `{value}`\n" for key, value in facts.items())


def table(rows: Sequence[Row], columns: dict[str, str]) -> str:
    lines = [f"| {' | '.join(columns.values())} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(row.get(name) or '' for name in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def by_batch(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of the largest group of one budget, by batch, in order of context."""
    budgets = defaultdict(list)
    for row in rows:
        budgets[row["budget"]].append(row)
    chosen = max(budgets.values(), key=len)
    groups = defaultdict(list)
    for row in sorted(chosen, key=lambda row: int(row["context"])):
        groups[row["batch"]].append(row)
    return groups


def plot_lines(rows: Sequence[Row], column: str, label: str, line_at_one: bool, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4))
    groups = by_batch(rows)
    for batch, group in sorted(groups.items(), key=lambda item: int(item[0])):
        contexts = [int(row["context"]) for row in group]
        axes.plot(contexts, [float(row[column]) for row in group], marker="o", label=f"batch {batch}")
    if line_at_one:
        axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log", base=2)
    ticks = sorted({int(row["context"]) for row in rows})
    axes.set_xticks(ticks, [f"{tick // 1024}K" if tick >= 1024 else str(tick) for tick in ticks])
    axes.set(xlabel="context, tokens", ylabel=label, title=f"Attention of one decode step, K = {rows[0]['budget']}")
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(alpha=0.3)
    save(figure, path)


def plot_speedup(rows: Sequence[Row], path: Path) -> None:
    plot_lines(rows, "speedup", "speed-up over dense FlashInfer", True, path)


def plot_bound(rows: Sequence[Row], path: Path) -> None:
    plot_lines(rows, "byte_bound_share", "share of the byte bound", True, path)


def plot_step(rows: Sequence[Row], path: Path) -> None:
    """A bar per shape: dense layers, select layers by stage, sparse layers."""
    rows = [row for row in rows if int(row["context"]) > int(row["budget"])]
    parts: dict[str, list[float]] = {
        "dense layers": [DENSE_LAYERS * float(row["dense_us"]) for row in rows],
        "select layers: attention and scores": [SELECT_LAYERS * float(row["attend_us"]) for row in rows],
        "select layers: the set": [SELECT_LAYERS * (float(row["select_us"]) - float(row["attend_us"])) for row in rows],
        "sparse layers": [SPARSE_LAYERS * float(row["sparse"]) for row in rows],
    }
    figure, axes = plt.subplots(figsize=(7, 0.5 * len(rows) + 2))
    names = [f"{row['batch']} × {int(row['context']) // 1024}K" for row in rows]
    left = [0.0] * len(rows)
    for label, values in parts.items():
        axes.barh(names, values, left=left, label=label)
        left = [start + value for start, value in zip(left, values, strict=True)]
    axes.plot([float(row["step_dense_us"]) for row in rows], names, "k|", markersize=14, label="36 dense layers")
    axes.set(xlabel="µs", title="Where the attention of a step goes")
    axes.invert_yaxis()
    axes.legend(fontsize=8, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
