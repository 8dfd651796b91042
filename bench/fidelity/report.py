"""The page and the plots of ``bench.fidelity``'s results.

    python -m bench.fidelity.report [--results bench/results]

Means are over windows, each a text at a context; intervals are 95 % of 2,000 bootstrap samples of windows; the sign
test pairs a policy with LessIsMore window by window. Different policies keep different layers full, so the same budget
is not the same number of attended tokens: a rival's KL at LessIsMore's attended tokens is read off its own curve over
budgets, a straight line between its points in logarithms, and left out where that curve does not reach.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from bench import driver
from bench.driver import read_rows

Row = dict[str, str]
OURS = "lessismore"
PAPER_LIKE = "2+10"
RIVALS = ("tidaldecode", "quest", "streamingllm", "kascade")
LIMITS = """
## What this does not say

The default plan's two select layers were calibrated on one of these texts (language reference); TidalDecode is given
the same layers, Quest and StreamingLLM choose by layer and have no such choice. The oracle keeps full the layers that
LessIsMore keeps full. Where a single fact has to be found, the select layers decide: see the recall table.

SmolLM2-135M is a small model with 8K of context, and a few tokens of teacher forcing are not a chain of thought.
Nothing here replaces the accuracy of an 8B reasoner on the tasks it is served for; `python -m bench.reasoning`
measures that on a server.
"""


def main() -> None:
    parser, results = driver.results_folder(__doc__)
    curves = read_rows(results / "fidelity.csv")
    if not curves:
        parser.error(f"{results / 'fidelity.csv'} does not exist; run python -m bench.fidelity first")
    plans = read_rows(results / "fidelity_plans.csv")
    recall = read_rows(results / "fidelity_recall.csv")
    free = read_rows(results / "fidelity_free.csv")
    parts = ["# Fidelity, as measured\n", intro(curves), curve_tables(curves), equal_cost(curves)]
    parts += ["![KL to dense](fidelity.png)\n"]
    layers = json.loads((results / "fidelity.json").read_text())["layers"] if plans else 0
    if plans:
        parts += [plan_table(plans, layers)]
    if recall:
        parts += [recall_table(recall), "![facts recalled](fidelity_recall.png)\n"]
        plot_recall(recall, results / "fidelity_recall.png")
    if free:
        parts += [free_table(free)]
    plot(curves, plans, layers, results / "fidelity.png")
    (results / "fidelity.md").write_text("\n".join([*parts, LIMITS.strip()]) + "\n")
    print(results / "fidelity.md")


def intro(rows: Sequence[Row]) -> str:
    texts = sorted({row["text"] for row in rows})
    contexts = sorted({int(row["context"]) for row in rows})
    windows = len({window(row) for row in rows})
    return (
        f"SmolLM2-135M-Instruct, float32. Texts: {', '.join(texts)}. Contexts: {', '.join(map(str, contexts))} tokens. "
        f"{windows} windows of teacher-forced decode steps behind a dense prefill.\n"
    )


def window(row: Row) -> tuple[str, ...]:
    return row["text"], row["context"], row["window"]


def group(rows: Sequence[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def mean(rows: Sequence[Row], column: str) -> float:
    return statistics.fmean(float(row[column]) for row in rows)


def interval(rows: Sequence[Row], column: str, samples: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over windows."""
    values = [float(row[column]) for row in rows]
    draw = random.Random(len(values))
    means = sorted(statistics.fmean(draw.choices(values, k=len(values))) for _ in range(samples))
    return means[int(0.025 * samples)], means[int(0.975 * samples)]


def sign_test(ours: Sequence[Row], theirs: Sequence[Row]) -> tuple[int, int, float]:
    """Windows in which LessIsMore's KL is lower, windows in all, two-sided p of a fair coin."""
    other = {window(row): float(row["kl"]) for row in theirs}
    pairs = [(float(row["kl"]), other[window(row)]) for row in ours if window(row) in other]
    wins, total = sum(a < b for a, b in pairs), sum(a != b for a, b in pairs)
    tail = sum(math.comb(total, k) for k in range(max(wins, total - wins), total + 1)) / 2**total
    return wins, total, min(1.0, 2 * tail)


def curve_tables(rows: Sequence[Row]) -> str:
    lines = []
    for budget, of_budget in sorted(group(rows, lambda row: int(row["budget"])).items()):
        arms = group(same_windows(of_budget), lambda row: row["policy"])
        if OURS not in arms:
            continue  # a rival's, for its curve
        lines += [
            f"## K = {budget}, {len({window(row) for row in arms[OURS]})} windows\n",
            "| policy | plan | KL to dense | 95 % | NLL difference | top-1 | recall | attended tokens | "
            "LessIsMore lower in | p |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for policy, of_arm in sorted(arms.items(), key=lambda item: mean(item[1], "kl")):
            low, high = interval(of_arm, "kl")
            wins, total, p = sign_test(arms[OURS], of_arm)
            paired = "| |" if policy == OURS else f"| {wins}/{total} | {p:.2g} |"
            lines.append(
                f"| {policy} | {of_arm[0]['plan']} | {mean(of_arm, 'kl'):.3f} | {low:.3f} to {high:.3f} "
                f"| {mean(of_arm, 'nll_delta'):+.3f} | {mean(of_arm, 'top1'):.1%} | {mean(of_arm, 'recall'):.1%} "
                f"| {mean(of_arm, 'attended'):.0f} {paired}"
            )
        lines.append("")
    return "\n".join(lines)


def same_windows(
    rows: Sequence[Row], arm: Callable[[Row], Any] = lambda row: (row["policy"], row["budget"])
) -> list[Row]:
    """Rows of windows in which all was measured, so that every ``arm`` has the same windows everywhere."""
    arms = {arm(row) for row in rows}
    at = group(rows, window)
    return [row for of_window in at.values() if {arm(row) for row in of_window} == arms for row in of_window]


def curve(rows: Sequence[Row], policy: str) -> list[tuple[float, float]]:
    """(attended tokens, KL) by budget, ascending."""
    of_arm = group([row for row in rows if row["policy"] == policy], lambda row: int(row["budget"]))
    return [(mean(of_budget, "attended"), mean(of_budget, "kl")) for _, of_budget in sorted(of_arm.items())]


def read_off(points: Sequence[tuple[float, float]], attended: float) -> float | None:
    """KL at ``attended`` on the line between neighbouring points, in logarithms; None outside."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= attended <= x1:
            share = math.log(attended / x0) / math.log(x1 / x0)
            return math.exp(math.log(y0) + share * math.log(y1 / y0))
    return None


def equal_cost(rows: Sequence[Row]) -> str:
    rows = same_windows(rows)
    lines = [
        "## At the same attended tokens\n",
        f"Over the {len({window(row) for row in rows})} windows in which all of this was measured; a rival's KL at "
        "LessIsMore's attended tokens, from its own curve.\n",
        f"| K | attended tokens | {OURS} | {' | '.join(RIVALS)} | lower than TidalDecode and Quest |",
        "|---|---|---|" + "---|" * (len(RIVALS) + 1),
    ]
    curves = {policy: curve(rows, policy) for policy in (OURS, *RIVALS)}
    budgets = sorted({int(row["budget"]) for row in rows if row["policy"] == OURS})
    for budget, (attended, kl) in zip(budgets, curves[OURS], strict=True):
        found = {policy: read_off(curves[policy], attended) for policy in RIVALS}
        needed = [found["tidaldecode"], found["quest"]]
        known = [value for value in needed if value is not None]
        verdict = (
            "no" if any(kl >= value for value in known) else "yes" if len(known) == len(needed) else "as far as known"
        )
        shown = " | ".join("" if value is None else f"{value:.3f}" for value in found.values())
        lines.append(f"| {budget} | {attended:.0f} | {kl:.3f} | {shown} | {verdict} |")
    return "\n".join(lines) + "\n"


def full_layers(plan: str) -> int:
    """Layers that attend to everything: those before the first select layer, and the select layers."""
    layers = [int(layer) for layer in plan.split("+")]
    return layers[0] + len(layers)


def byte_share(plan: str, row: Row, num_layers: int) -> float:
    """KV bytes of a step against dense attention's."""
    context, budget, full = int(row["context"]), int(row["budget"]), full_layers(plan)
    return (full * context + (num_layers - full) * min(budget, context)) / (num_layers * context)


def plan_table(rows: Sequence[Row], num_layers: int) -> str:
    first = rows[0]
    texts = sorted({row["text"] for row in rows})
    lines = [
        f"## LessIsMore at K = {first['budget']} by its plan, {int(first['context']):,} tokens of context\n",
        f"On {len({window(row) for row in rows})} windows of texts that calibration did not see: {', '.join(texts)}. "
        f"{calibration_words(rows)}\n",
        "| full layers | of dense bytes | select layers | chosen | KL to dense | 95 % | top-1 | recall |",
        "|---|---|---|---|---|---|---|---|",
    ]
    plans = group(rows, lambda row: (row["plan"], row["policy"]))
    for (plan, origin), of_plan in sorted(
        plans.items(), key=lambda item: (full_layers(item[0][0]), mean(item[1], "kl"))
    ):
        low, high = interval(of_plan, "kl")
        lines.append(
            f"| {full_layers(plan)} | {byte_share(plan, first, num_layers):.0%} | {plan} | {origin} "
            f"| {mean(of_plan, 'kl'):.3f} | {low:.3f} to {high:.3f} "
            f"| {mean(of_plan, 'top1'):.1%} | {mean(of_plan, 'recall'):.1%} |"
        )
    return "\n".join(lines) + "\n"


def calibration_words(rows: Sequence[Row]) -> str:
    """What calibration gains: at the size of the paper's plans, and with up to six full layers."""
    chosen = group([row for row in rows if row["policy"] == "calibrated"], lambda row: row["plan"])
    two = [plan for plan in chosen if len(plan.split("+")) == 2 and full_layers(plan) == full_layers(PAPER_LIKE)]
    words = []
    paper = [row for row in rows if row["plan"] == PAPER_LIKE]
    if paper and two:
        plan = two[0]
        ratio = mean(paper, "kl") / mean(chosen[plan], "kl")
        words.append(
            f"With two select layers calibration takes {plan}: a mean KL of {mean(chosen[plan], 'kl'):.3f} against "
            f"{mean(paper, 'kl'):.3f} of the paper-like {PAPER_LIKE}, {ratio:.1f} times less."
        )
    small = {plan: mean(found, "kl") for plan, found in chosen.items() if full_layers(plan) <= 6}
    if small:
        best = min(small, key=lambda plan: small[plan])
        words.append(f"With at most 6 full layers it reaches {small[best]:.3f} ({best}).")
    return " ".join(words)


def recall_table(rows: Sequence[Row]) -> str:
    solved = [row for row in rows if row["dense_right"] == "1"]
    lines = [
        f"## Facts recalled at K = {rows[0]['budget']}, where dense recalls them\n",
        "| policy | needle | four keys |",
        "|---|---|---|",
    ]
    for policy, of_arm in group(solved, lambda row: row["policy"]).items():
        tasks = group(of_arm, lambda row: row["task"])
        shown = [f"{sum(r['right'] == '1' for r in tasks[task])}/{len(tasks[task])}" for task in ("needle", "keys")]
        lines.append(f"| {policy} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def free_table(rows: Sequence[Row]) -> str:
    lines = [
        "## Greedy generation behind 2,000 tokens of text\n",
        "Tokens shared with dense before the first difference, and length to the end of text or the limit, means over "
        f"{len({row['prompt'] for row in rows})} prompts.\n",
        "| K | policy | shared tokens | length | dense length |",
        "|---|---|---|---|---|",
    ]
    for (budget, policy), of_arm in sorted(group(rows, lambda row: (int(row["budget"]), row["policy"])).items()):
        shown = [f"{mean(of_arm, column):.0f}" for column in ("same_tokens", "length", "dense_length")]
        lines.append(f"| {budget} | {policy} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def plot(curves: Sequence[Row], plans: Sequence[Row], num_layers: int, path: Path) -> None:
    """KL against attended tokens by policy; KL against the share of dense bytes by plan."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    rows = same_windows(curves)
    for policy in dict.fromkeys(row["policy"] for row in rows):
        line = "-" if policy in (OURS, *RIVALS) else ":"
        width = 2.5 if policy == OURS else 1.5
        color = "black" if policy == "oracle" else None  # the colours' cycle ends at ten
        attended, kl = zip(*curve(rows, policy), strict=True)
        left.plot(attended, kl, marker="o", markersize=3, label=policy, linestyle=line, linewidth=width, color=color)
    left.set(xscale="log", yscale="log", xlabel="attended tokens, mean over layers", ylabel="KL to dense")
    left.legend(fontsize=7)
    left.grid(alpha=0.3, which="both")
    for origin, of_origin in group(plans, lambda row: row["policy"]).items():
        points = sorted(
            (byte_share(plan, of_plan[0], num_layers), mean(of_plan, "kl"), plan)
            for plan, of_plan in group(of_origin, lambda row: row["plan"]).items()
        )
        joined = "o-" if origin == "calibrated" else "o"
        right.plot([p[0] for p in points], [p[1] for p in points], joined, markersize=4, label=origin)
        for x, y, plan in points:
            if len(plan) < 12:
                right.annotate(plan, (x, y), fontsize=6, xytext=(4, 2), textcoords="offset points")
    right.set(yscale="log", xlabel="share of dense attention's bytes", ylabel="KL to dense", title="LessIsMore by plan")
    if plans:
        right.legend(fontsize=7)
    right.grid(alpha=0.3, which="both")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_recall(rows: Sequence[Row], path: Path) -> None:
    """A grid per task and policy: depth against context, share of facts recalled where dense recalls them."""
    solved = [row for row in rows if row["dense_right"] == "1"]
    policies, tasks = [*dict.fromkeys(row["policy"] for row in rows)], [*dict.fromkeys(row["task"] for row in rows)]
    contexts = sorted({int(row["context"]) for row in rows})
    depths = sorted({float(row["depth"]) for row in rows})
    figure, axes = plt.subplots(len(tasks), len(policies), figsize=(2 * len(policies), 2.4 * len(tasks)), squeeze=False)
    cells = group(solved, lambda row: (row["task"], row["policy"], int(row["context"]), float(row["depth"])))
    for i, task in enumerate(tasks):
        for j, policy in enumerate(policies):
            grid = [[share(cells.get((task, policy, c, d), [])) for c in contexts] for d in depths]
            ax = axes[i][j]
            ax.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
            ax.set_title(f"{policy}\n{task}", fontsize=8)
            ax.set_xticks(range(len(contexts)), [f"{c // 1024}K" for c in contexts], fontsize=7)
            ax.set_yticks(range(len(depths)), [f"{d:.0%}" for d in depths] if j == 0 else [], fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def share(rows: Sequence[Row]) -> float:
    """NaN (left white) where dense solved nothing."""
    return sum(row["right"] == "1" for row in rows) / len(rows) if rows else math.nan


if __name__ == "__main__":
    main()
