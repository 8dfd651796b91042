"""Plots and one Markdown page from the results that the benchmarks left.

    python -m bench.speed.report [--results bench/results]

Reads ``decode_attention.csv``, every ``decode_engine*.csv`` and ``long_decode.csv`` where they exist; writes
``speed.md`` and plots beside them, and from every ``lossless*.csv`` the plot ``lossless.png``.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from bench import driver
from bench.driver import markdown, read_rows

Row = dict[str, str]
HEADINGS = {
    "budget": "K",
    "dense_us": "dense layer, µs",
    "select_us": "select layer, µs",
    "select_beyond_dense": "beyond its dense attention",
    "sparse": "sparse layer, µs",
    "step_dense_us": "36 dense layers, µs",
    "lim_us": "a step of lim, µs",
    "dense_ms": "dense, ms per step",
    "lim_ms": "lim, ms per step",
    "speedup": "speed-up",
    "byte_bound_share": "of the byte bound",
    "extra_mib": "extra MiB",
}
ATTENTION = ["dense_us", "select_us", "select_beyond_dense", "sparse", "step_dense_us", "lim_us"]
STEP = ["dense_ms", "lim_ms", "speedup"]
TERMS = """\
- *of the byte bound*: the time that the least bytes lim must read would take at the bandwidth of a copy in the same
  run, over the time measured. In the engine these are weights, K and V, in the attention tables K and V.
- *extra MiB*: device memory of lim's engine beyond the dense engine's.
- *beyond its dense attention*: what a select layer takes longer than its dense attention alone, as a share of that.
"""
PARTS = ("dense_us", "attend_us", "select_us", "sparse", "step_dense_us")
DENSE_LAYERS, SELECT_LAYERS, SPARSE_LAYERS = 2, 2, 32  # of the benchmark's 36


def main() -> None:
    parser, results = driver.results_folder(__doc__)
    attention = measured(results / "decode_attention.csv")
    engines = {path: measured(path) for path in sorted(results.glob("decode_engine*.csv"))}
    if not attention and not any(engines.values()):
        parser.error(f"{results} holds neither decode_attention.csv nor decode_engine.csv; run the benchmarks first")
    long_decode = read_rows(results / "long_decode.csv")
    sections = [
        *(engine_section(rows, path) for path, rows in engines.items() if rows),
        attention_section(attention, results) if attention else "",
        long_decode_section(long_decode, results) if long_decode else "",
    ]
    (results / "speed.md").write_text("\n".join(["# Speed, as measured\n", TERMS, *filter(None, sections)]))
    print(results / "speed.md")
    if rows := lossless_rows(results):
        plot_lossless(rows, results / "lossless.png")


def engine_section(rows: list[Row], path: Path) -> str:
    found = facts(path.parent, path.stem)
    arms, sglang = found["arms"], found["about"].get("sglang", "")
    batch = max(int(row["batch"]) for row in rows)
    parts = [
        f"## The engine of SGLang {sglang}, graphs for up to {batch} requests, {rows[0]['gpu']}\n",
        table(rows, ["batch", "context", "budget", *STEP, "byte_bound_share", "extra_mib"]),
        profile_table(arms),
        host_work(arms),
        about(found),
    ]
    return "\n".join(filter(None, parts))


def host_work(arms: dict[str, Any]) -> str:
    """The attention backend's own host work before a step; lim's contains the dense backend's."""
    found = [run["host_us_per_step"] for run in arms.get("lim", ()) if run.get("host_us_per_step")]
    words = "Host work before a step, in lim's engine: {lim} µs, of which the dense backend's is {dense} µs.\n"
    return "".join(words.format(**us) for us in found)


def profile_table(arms: dict[str, Any]) -> str:
    """One captured step taken apart, where a profile was taken."""
    profiles = {
        f"{arm}, {shape.replace('x', ' × ')}": found["profile"]
        for arm, runs in arms.items()
        for shape, found in (runs[0]["shapes"].items() if runs else ())
        if found.get("profile", {}).get("us_per_step")
    }
    if not profiles:
        return ""
    kinds = sorted({kind for profile in profiles.values() for kind in profile["us_per_step"]})
    words = (
        "One captured step, µs by kind of kernel. A merge is launched while the attention ahead of it runs and waits "
        "for it, so durations overlap.\n\n"
    )
    rows = (
        (name, profile["graph_us"], *(profile["us_per_step"].get(kind, "") for kind in kinds))
        for name, profile in profiles.items()
    )
    return words + markdown(("", "whole step", *kinds), rows)


def attention_section(rows: list[Row], results: Path) -> str:
    for row in rows:
        row["sparse"] = row["sparse_triton_us"] or row["sparse_us"]
    plot_lines(rows, "speedup", "speed-up over dense FlashInfer", results / "speedup.png")
    plot_step(rows, results / "step.png")
    plot_lines(rows, "byte_bound_share", "share of the byte bound", results / "byte_bound.png")
    shown = (
        "![speed-up against context](speedup.png)\n\n![where a step's attention goes](step.png)\n\n"
        "![share of the byte bound](byte_bound.png)\n"
    )
    title = f"## Attention of one step, {rows[0]['gpu']}\n"
    columns = ["batch", "context", "budget", *ATTENTION, "speedup", "byte_bound_share"]
    return "\n".join([title, table(rows, columns), shown, about(facts(results, "decode_attention"))])


def long_decode_section(rows: list[Row], results: Path) -> str:
    plot_long_decode(rows, results / "long_decode.png")
    of_run = facts(results, "long_decode")
    found = of_run["summary"]
    words = (
        f"The whole generation took {found['dense_s']} s with dense attention and {found['lim_s']} s with lim: "
        f"{found['speedup']}×. lim is ahead from a context of {found['ahead_from_context']} tokens on; its lowest "
        f"speed-up of a stretch is {found['lowest_speedup']}. {found['same_tokens_within_budget']} requests have "
        "dense's tokens throughout the budget.\n"
    )
    plot = "![tokens per second as the context grows](long_decode.png)\n"
    title = f"## Long generation, {rows[0]['gpu']}\n"
    return "\n".join([title, words, plot, table(rows, ["batch", "budget", "context", *STEP]), about(of_run)])


def measured(path: Path) -> list[Row]:
    """The rows whose results were right; the others have a reason in place of a speed-up."""
    return [row for row in read_rows(path) if is_number(row["speedup"])]


def is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def facts(results: Path, name: str) -> dict[str, Any]:
    """What the JSON file beside a table says; nothing where it is missing."""
    path = results / f"{name}.json"
    return defaultdict(dict, json.loads(path.read_text()) if path.exists() else {})


def about(found: dict[str, Any]) -> str:
    return "".join(f"- {key}: `{value}`\n" for key, value in found["about"].items())


def table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    headings = [HEADINGS.get(name, name) for name in columns]
    return markdown(headings, ([row.get(name) or "" for name in columns] for row in rows))


def by_batch(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of the largest group of one budget, by batch, in order of context."""
    most = statistics.mode(row["budget"] for row in rows)
    groups = defaultdict(list)
    for row in sorted(rows, key=lambda row: int(row["context"])):
        if row["budget"] == most:
            groups[row["batch"]].append(row)
    return groups


def plot_lines(rows: Sequence[Row], column: str, label: str, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4))
    for batch, group in sorted(by_batch(rows).items(), key=lambda item: int(item[0])):
        contexts = [int(row["context"]) for row in group]
        axes.plot(contexts, [float(row[column]) for row in group], marker="o", label=f"batch {batch}")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log", base=2)
    ticks = sorted({int(row["context"]) for row in rows})
    axes.set_xticks(ticks, [f"{tick // 1024}K" if tick >= 1024 else str(tick) for tick in ticks])
    axes.set(xlabel="context, tokens", ylabel=label, title=f"Attention of one decode step, K = {budget(rows)}")
    save_lines(figure, path)


def plot_step(rows: Sequence[Row], path: Path) -> None:
    """A bar per shape of one budget: dense layers, select layers by stage, sparse layers, as shares of dense."""
    rows = [row for of_batch in by_batch(rows).values() for row in of_batch if int(row["context"]) > int(row["budget"])]
    us = {name: np.array([float(row[name]) for row in rows]) for name in PARTS}
    parts = {
        "dense layers": DENSE_LAYERS * us["dense_us"],
        "select layers: attention and scores": SELECT_LAYERS * us["attend_us"],
        "select layers: the set": SELECT_LAYERS * (us["select_us"] - us["attend_us"]),
        "sparse layers": SPARSE_LAYERS * us["sparse"],
    }
    figure, axes = plt.subplots(figsize=(7, 0.3 * len(rows) + 2))
    names = [f"{row['batch']} × {int(row['context']) // 1024}K" for row in rows]
    left = np.zeros(len(rows))
    for label, spent in parts.items():
        shares = spent / us["step_dense_us"]
        axes.barh(names, shares, left=left, label=label)
        left += shares
    axes.set(xlabel="share of dense attention's time", title=f"Where the attention of a step goes, K = {budget(rows)}")
    axes.invert_yaxis()
    axes.legend(fontsize=8, loc="lower right")
    save(figure, path)


def budget(rows: Sequence[Row]) -> str:
    return rows[0]["budget"] if rows else ""


def plot_long_decode(rows: Sequence[Row], path: Path) -> None:
    """Tokens per second of the batch as its context grows, dense and lim, and the budget."""
    figure, axes = plt.subplots(figsize=(7, 4))
    contexts = [int(row["context"]) for row in rows]
    batch = int(rows[0]["batch"])
    for arm in ("dense", "lim"):
        axes.plot(contexts, [batch * 1e3 / float(row[f"{arm}_ms"]) for row in rows], label=arm)
    axes.axvline(int(budget(rows)), color="grey", linewidth=0.8, linestyle=":", label=f"K = {budget(rows)}")
    axes.set(xlabel="context, tokens", ylabel="tokens per second", title=f"{batch} requests, as they generate")
    save_lines(figure, path)


def lossless_rows(results: Path) -> list[Row]:
    """All rows with a speed-up; drafts choose sets in every step unless a file says otherwise."""
    files = [path for path in sorted(results.glob("lossless*.csv")) if "tokens" not in path.stem]
    found = [row for path in files for row in read_rows(path)]
    return [row for row in found if is_number(row["speedup"]) and row.get("drafts_by_set", "1") == "1"]


def plot_lossless(rows: list[Row], path: Path) -> None:
    """Speed-up, left by share of every shape with several, right by size at the share that was measured greedily."""
    figure, (by_share, by_tokens) = plt.subplots(1, 2, figsize=(11, 4))
    shapes, by_gpu = defaultdict(list), defaultdict(list)
    for row in rows:
        batch, context, speedup = int(row["batch"]), int(row["context"]), float(row["speedup"])
        shapes[short(row), batch, context].append((float(row["share"]), speedup))
        if "greedy" in row["measured"]:
            by_gpu[short(row)].append((batch * context, speedup))
    for (gpu, batch, context), points in sorted(shapes.items()):
        if len(points) > 1:
            by_share.plot(*zip(*sorted(points), strict=True), marker="o", label=f"{gpu}, {batch} × {context:,}")
    for gpu, found in sorted(by_gpu.items()):
        by_tokens.plot(*zip(*sorted(found), strict=True), marker="o", label=gpu)
    by_share.set(xlabel="share of drafts accepted, given those before", ylabel="speed-up over dense attention")
    by_tokens.set(xlabel="cached tokens of the batch", title="at the acceptance measured greedily")
    by_tokens.set_xscale("log")
    for axes in figure.axes:
        axes.axhline(1, color="grey", linewidth=0.8)
    save_lines(figure, path, fontsize=8)


def short(row: Row) -> str:
    """``2 × H100`` for two ranks on ``NVIDIA H100 80GB HBM3``."""
    gpu = row["gpu"].replace("NVIDIA ", "").split()[0]
    return gpu if row.get("tp", "1") == "1" else f"{row['tp']} × {gpu}"


def save_lines(figure: Any, path: Path, **legend: Any) -> None:
    for axes in figure.axes:
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(**legend)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
