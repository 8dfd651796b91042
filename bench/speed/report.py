"""Plots and one Markdown page from the results that the benchmarks left.

    python -m bench.speed.report [--results bench/results]

Reads ``decode_attention.csv``, every ``decode_engine*.csv`` and ``long_decode.csv`` where they exist; writes
``speed.md`` and plots beside them, and from every ``lossless*.csv`` the plot ``lossless.png``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from bench import driver
from bench.driver import markdown, read_rows

Row = dict[str, str]
LONG_DECODE_COLUMNS = {
    "batch": "batch",
    "budget": "K",
    "context": "context",
    "dense_ms": "dense, ms per step",
    "lim_ms": "lim, ms per step",
    "speedup": "speed-up",
}
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
TERMS = """\
- *of the byte bound*: the time that the least bytes lim must read would take at the bandwidth of a copy in the same
  run, over the time measured. In the engine these are weights, K and V, in the attention tables K and V.
- *extra MiB*: device memory of lim's engine beyond the dense engine's.
- *beyond its dense attention*: what a select layer takes longer than its dense attention alone, as a share of that.
"""
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
    facts = path.with_suffix(".json")
    found = json.loads(facts.read_text()) if facts.exists() else {}
    arms, sglang = found.get("arms", {}), found.get("about", {}).get("sglang", "")
    batch = max(int(row["batch"]) for row in rows)
    parts = [
        f"## The engine of SGLang {sglang}, graphs for up to {batch} requests, {rows[0]['gpu']}\n",
        table(rows, ENGINE_COLUMNS),
        profile_table(arms),
        host_work(arms),
        about(path.parent, path.stem),
    ]
    return "\n".join(filter(None, parts))


def host_work(arms: dict[str, Any]) -> str:
    """The attention backend's own host work before a step; lim's contains the dense backend's."""
    found = [run["host_us_per_step"] for run in arms.get("lim", ()) if run.get("host_us_per_step")]
    return "".join(
        f"Host work before a step, in lim's engine: {us['lim']} µs, of which the dense backend's is {us['dense']} µs.\n"
        for us in found
    )


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
    plot_speedup(rows, results / "speedup.png")
    plot_step(rows, results / "step.png")
    plot_bound(rows, results / "byte_bound.png")
    plots = {
        "speedup.png": "speed-up against context",
        "step.png": "where a step's attention goes",
        "byte_bound.png": "share of the byte bound",
    }
    shown = "\n\n".join(f"![{label}]({name})" for name, label in plots.items()) + "\n"
    title = f"## Attention of one step, {rows[0]['gpu']}\n"
    return "\n".join([title, table(rows, ATTENTION_COLUMNS), shown, about(results, "decode_attention")])


def long_decode_section(rows: list[Row], results: Path) -> str:
    plot_long_decode(rows, results / "long_decode.png")
    found = json.loads((results / "long_decode.json").read_text())["summary"]
    words = (
        f"The whole generation took {found['dense_s']} s with dense attention and {found['lim_s']} s with lim: "
        f"{found['speedup']}×. lim is ahead from a context of {found['ahead_from_context']} tokens on; its lowest "
        f"speed-up of a stretch is {found['lowest_speedup']}. {found['same_tokens_within_budget']} requests have "
        "dense's tokens throughout the budget.\n"
    )
    plot = "![tokens per second as the context grows](long_decode.png)\n"
    title = f"## Long generation, {rows[0]['gpu']}\n"
    return "\n".join([title, words, plot, table(rows, LONG_DECODE_COLUMNS), about(results, "long_decode")])


def measured(path: Path) -> list[Row]:
    """The rows whose results were right; the others have a reason in place of a speed-up."""
    return [row for row in read_rows(path) if is_number(row["speedup"])]


def is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def about(results: Path, name: str) -> str:
    path = results / f"{name}.json"
    if not path.exists():
        return ""
    facts = json.loads(path.read_text())["about"]
    return "".join(f"- {key}: `{value}`\n" for key, value in facts.items())


def table(rows: Sequence[Row], columns: dict[str, str]) -> str:
    return markdown([*columns.values()], ([row.get(name) or "" for name in columns] for row in rows))


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
    axes.set(xlabel="context, tokens", ylabel=label, title=f"Attention of one decode step, K = {budget(rows)}")
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(alpha=0.3)
    save(figure, path)


def plot_speedup(rows: Sequence[Row], path: Path) -> None:
    plot_lines(rows, "speedup", "speed-up over dense FlashInfer", True, path)


def plot_bound(rows: Sequence[Row], path: Path) -> None:
    plot_lines(rows, "byte_bound_share", "share of the byte bound", True, path)


def plot_step(rows: Sequence[Row], path: Path) -> None:
    """A bar per shape of one budget: dense layers, select layers by stage, sparse layers, as shares of dense."""
    rows = [row for of_batch in by_batch(rows).values() for row in of_batch if int(row["context"]) > int(row["budget"])]
    parts = {
        "dense layers": [DENSE_LAYERS * float(row["dense_us"]) for row in rows],
        "select layers: attention and scores": [SELECT_LAYERS * float(row["attend_us"]) for row in rows],
        "select layers: the set": [SELECT_LAYERS * (float(row["select_us"]) - float(row["attend_us"])) for row in rows],
        "sparse layers": [SPARSE_LAYERS * float(row["sparse"]) for row in rows],
    }
    figure, axes = plt.subplots(figsize=(7, 0.3 * len(rows) + 2))
    names = [f"{row['batch']} × {int(row['context']) // 1024}K" for row in rows]
    left = [0.0] * len(rows)
    for label, us in parts.items():
        shares = [value / float(row["step_dense_us"]) for value, row in zip(us, rows, strict=True)]
        axes.barh(names, shares, left=left, label=label)
        left = [start + share for start, share in zip(left, shares, strict=True)]
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
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(alpha=0.3)
    save(figure, path)


def lossless_rows(results: Path) -> list[Row]:
    """All rows with a speed-up; drafts choose sets in every step unless a file says otherwise."""
    files = [path for path in sorted(results.glob("lossless*.csv")) if "tokens" not in path.stem]
    found = [row for path in files for row in read_rows(path)]
    return [row for row in found if is_number(row["speedup"]) and row.get("drafts_by_set", "1") == "1"]


def plot_lossless(rows: list[Row], path: Path) -> None:
    """Speed-up, left by share of every shape with several, right by size at the share that was measured greedily."""
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


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
