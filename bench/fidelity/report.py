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
from collections.abc import Iterable, Sequence
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from bench import driver
from bench.driver import markdown, read_rows

Row = dict[str, str]
OURS = "lessismore"
PAPER_LIKE = "2+10"
RIVALS = ("tidaldecode", "quest", "streamingllm", "kascade")
CURVE_HEADINGS = (
    *("policy", "plan", "KL to dense", "95 %", "NLL difference", "top-1", "recall", "attended tokens"),
    *("LessIsMore lower in", "p"),
)
PLAN_HEADINGS = ("full layers", "of dense bytes", "select layers", "chosen", "KL to dense", "95 %", "top-1", "recall")
WINDOW = ("text", "context", "window")
window = itemgetter(*WINDOW)
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
    files = [results / f"fidelity{part}.csv" for part in ("", "_plans", "_recall", "_free")]
    curves, plans, recall, free = map(read_rows, files)
    if not curves:
        parser.error(f"{files[0]} does not exist; run python -m bench.fidelity first")
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
    (results / "fidelity.md").write_text("\n".join(parts) + LIMITS)
    print(results / "fidelity.md")


def intro(rows: Sequence[Row]) -> str:
    texts = ", ".join(sorted({row["text"] for row in rows}))
    return (
        f"SmolLM2-135M-Instruct, float32. Texts: {texts}. Contexts: {', '.join(values(rows, 'context'))} tokens. "
        f"{count(rows)} windows of teacher-forced decode steps behind a dense prefill.\n"
    )


def values(rows: Iterable[Row], column: str) -> list[str]:
    """The numbers in a column, ascending."""
    return sorted({row[column] for row in rows}, key=float)


def count(rows: Iterable[Row]) -> int:
    """How many windows there are."""
    return len(group(rows, *WINDOW))


def group(rows: Iterable[Row], *columns: str) -> dict[Any, list[Row]]:
    """Rows by the value of a column, or by the values of several, in the order in which they come."""
    groups, key = defaultdict(list), itemgetter(*columns)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def same_windows(rows: Sequence[Row], *arm: str) -> list[Row]:
    """Rows of windows in which all was measured, so that every arm, by its columns, has the same windows everywhere."""
    arms = group(rows, *arm).keys()
    at = group(rows, *WINDOW).values()
    return [row for of_window in at if group(of_window, *arm).keys() == arms for row in of_window]


def mean(rows: Sequence[Row], column: str) -> float:
    return statistics.fmean(float(row[column]) for row in rows)


def interval(rows: Sequence[Row], column: str, digits: int, samples: int = 2000) -> str:
    """95 % bootstrap interval of the mean over windows."""
    found = [float(row[column]) for row in rows]
    draw = random.Random(len(found))
    means = sorted(statistics.fmean(draw.choices(found, k=len(found))) for _ in range(samples))
    return f"{means[int(0.025 * samples)]:.{digits}f} to {means[int(0.975 * samples)]:.{digits}f}"


def sign_test(ours: Sequence[Row], theirs: Sequence[Row]) -> tuple[int, int, float]:
    """Windows in which LessIsMore's KL is lower, windows in all, two-sided p of a fair coin."""
    other = {window(row): float(row["kl"]) for row in theirs}
    pairs = [(float(row["kl"]), other[window(row)]) for row in ours]
    wins, total = sum(a < b for a, b in pairs), sum(a != b for a, b in pairs)
    tail = sum(math.comb(total, k) for k in range(max(wins, total - wins), total + 1)) / 2**total
    return wins, total, min(1.0, 2 * tail)


def curve_tables(rows: Sequence[Row]) -> str:
    tables = []
    for budget in values(rows, "budget"):
        arms = group(same_windows([row for row in rows if row["budget"] == budget], "policy"), "policy")
        if OURS not in arms:
            continue  # a rival's, for its curve
        found = []
        for policy, of_arm in sorted(arms.items(), key=lambda item: mean(item[1], "kl")):
            wins, total, p = sign_test(arms[OURS], of_arm)
            costs = f"{mean(of_arm, 'kl'):.3f}", interval(of_arm, "kl", 3), f"{mean(of_arm, 'nll_delta'):+.3f}"
            shares = f"{mean(of_arm, 'top1'):.1%}", f"{mean(of_arm, 'recall'):.1%}", f"{mean(of_arm, 'attended'):.0f}"
            paired = "" if policy == OURS else f"{wins}/{total} | {p:.2g}"
            found.append((policy, of_arm[0]["plan"], *costs, *shares, paired))
        title = f"## K = {budget}, {count(arms[OURS])} windows\n\n"
        tables.append(title + markdown(CURVE_HEADINGS, found).replace("|  |\n", "| |\n"))
    return "\n".join(tables)


def curve(rows: Sequence[Row], policy: str) -> list[tuple[float, float]]:
    """(attended tokens, KL) by budget, ascending."""
    of_arm = group([row for row in rows if row["policy"] == policy], "budget")
    return [(mean(of_arm[budget], "attended"), mean(of_arm[budget], "kl")) for budget in sorted(of_arm, key=int)]


def read_off(points: Sequence[tuple[float, float]], attended: float) -> float | None:
    """KL at ``attended`` on the line between neighbouring points, in logarithms; None outside."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= attended <= x1:
            share = math.log(attended / x0) / math.log(x1 / x0)
            return math.exp(math.log(y0) + share * math.log(y1 / y0))
    return None


def equal_cost(rows: Sequence[Row]) -> str:
    rows = same_windows(rows, "policy", "budget")
    words = (
        f"## At the same attended tokens\n\nOver the {count(rows)} windows in which all of this was measured; a "
        "rival's KL at LessIsMore's attended tokens, from its own curve.\n\n"
    )
    curves = {policy: curve(rows, policy) for policy in RIVALS}
    budgets = values((row for row in rows if row["policy"] == OURS), "budget")
    cells = []
    for budget, (attended, kl) in zip(budgets, curve(rows, OURS), strict=True):
        found = {policy: read_off(curves[policy], attended) for policy in RIVALS}
        known = [value for value in (found["tidaldecode"], found["quest"]) if value is not None]
        verdict = "no" if any(kl >= value for value in known) else "yes" if len(known) == 2 else "as far as known"
        shown = ("" if value is None else f"{value:.3f}" for value in found.values())
        cells.append((budget, f"{attended:.0f}", f"{kl:.3f}", *shown, verdict))
    return words + markdown(("K", "attended tokens", OURS, *RIVALS, "lower than TidalDecode and Quest"), cells)


def full_layers(plan: str) -> int:
    """Layers that attend to everything: those before the first select layer, and the select layers."""
    layers = plan.split("+")
    return int(layers[0]) + len(layers)


def byte_share(plan: str, row: Row, num_layers: int) -> float:
    """KV bytes of a step against dense attention's."""
    context, budget, full = int(row["context"]), int(row["budget"]), full_layers(plan)
    return (full * context + (num_layers - full) * min(budget, context)) / (num_layers * context)


def plan_table(rows: Sequence[Row], num_layers: int) -> str:
    first, texts = rows[0], ", ".join(sorted({row["text"] for row in rows}))
    words = (
        f"## LessIsMore at K = {first['budget']} by its plan, {int(first['context']):,} tokens of context\n\n"
        f"On {count(rows)} windows of texts that calibration did not see: {texts}. {calibration_words(rows)}\n\n"
    )
    plans = group(rows, "plan", "policy").items()
    cells = []
    for (plan, origin), found in sorted(plans, key=lambda item: (full_layers(item[0][0]), mean(item[1], "kl"))):
        size = full_layers(plan), f"{byte_share(plan, first, num_layers):.0%}"
        shares = f"{mean(found, 'top1'):.1%}", f"{mean(found, 'recall'):.1%}"
        cells.append((*size, plan, origin, f"{mean(found, 'kl'):.3f}", interval(found, "kl", 3), *shares))
    return words + markdown(PLAN_HEADINGS, cells)


def calibration_words(rows: Sequence[Row]) -> str:
    """What calibration gains: at the size of the paper's plans, and with up to six full layers."""
    chosen = group([row for row in rows if row["policy"] == "calibrated"], "plan")
    kl = {plan: mean(found, "kl") for plan, found in chosen.items()}
    two = [plan for plan in kl if plan.count("+") == 1 and full_layers(plan) == full_layers(PAPER_LIKE)]
    words = []
    paper = [row for row in rows if row["plan"] == PAPER_LIKE]
    if paper and two:
        ours, theirs = kl[two[0]], mean(paper, "kl")
        words.append(
            f"With two select layers calibration takes {two[0]}: a mean KL of {ours:.3f} against {theirs:.3f} of the "
            f"paper-like {PAPER_LIKE}, {theirs / ours:.1f} times less."
        )
    if small := [plan for plan in kl if full_layers(plan) <= 6]:
        best = min(small, key=lambda plan: kl[plan])
        words.append(f"With at most 6 full layers it reaches {kl[best]:.3f} ({best}).")
    return " ".join(words)


def recall_table(rows: Sequence[Row]) -> str:
    title = f"## Facts recalled at K = {rows[0]['budget']}, where dense recalls them\n\n"
    found = group((row for row in rows if row["dense_right"] == "1"), "policy", "task")
    cells = [
        (policy, *(f"{recalled(found[policy, task])}/{len(found[policy, task])}" for task in ("needle", "keys")))
        for policy in group(rows, "policy")
    ]
    return title + markdown(("policy", "needle", "four keys"), cells)


def recalled(rows: Iterable[Row]) -> int:
    return sum(row["right"] == "1" for row in rows)


def free_table(rows: Sequence[Row]) -> str:
    words = (
        "## Greedy generation behind 2,000 tokens of text\n\n"
        "Tokens shared with dense before the first difference, and length to the end of text or the limit, means over "
        f"{len(group(rows, 'prompt'))} prompts.\n\n"
    )
    arms = sorted(group(rows, "budget", "policy").items(), key=lambda item: (int(item[0][0]), item[0][1]))
    columns = ("same_tokens", "length", "dense_length")
    cells = [(*arm, *(f"{mean(found, column):.0f}" for column in columns)) for arm, found in arms]
    return words + markdown(("K", "policy", "shared tokens", "length", "dense length"), cells)


def plot(curves: Sequence[Row], plans: Sequence[Row], num_layers: int, path: Path) -> None:
    """KL against attended tokens by policy; KL against the share of dense bytes by plan."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    rows = same_windows(curves, "policy", "budget")
    for policy in group(rows, "policy"):
        line = "-" if policy in (OURS, *RIVALS) else ":"
        width = 2.5 if policy == OURS else 1.5
        color = "black" if policy == "oracle" else None  # the colours' cycle ends at ten
        attended, kl = zip(*curve(rows, policy), strict=True)
        left.plot(attended, kl, marker="o", markersize=3, label=policy, linestyle=line, linewidth=width, color=color)
    left.set(xscale="log", yscale="log", xlabel="attended tokens, mean over layers", ylabel="KL to dense")
    left.legend(fontsize=7)
    left.grid(alpha=0.3, which="both")
    for origin, of_origin in group(plans, "policy").items():
        points = sorted(
            (byte_share(plan, of_plan[0], num_layers), mean(of_plan, "kl"), plan)
            for plan, of_plan in group(of_origin, "plan").items()
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
    save(figure, path)


def plot_recall(rows: Sequence[Row], path: Path) -> None:
    """A grid per task and policy: depth against context, share of facts recalled where dense recalls them."""
    policies, tasks = list(group(rows, "policy")), list(group(rows, "task"))
    contexts, depths = values(rows, "context"), values(rows, "depth")
    figure, axes = plt.subplots(len(tasks), len(policies), figsize=(2 * len(policies), 2.4 * len(tasks)), squeeze=False)
    cells = group((row for row in rows if row["dense_right"] == "1"), "task", "policy", "context", "depth")
    for i, task in enumerate(tasks):
        for j, policy in enumerate(policies):
            ax = axes[i][j]
            grid = [[share(cells[task, policy, c, d]) for c in contexts] for d in depths]
            ax.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
            ax.set_title(f"{policy}\n{task}", fontsize=8)
            ax.set_xticks(range(len(contexts)), [f"{int(c) // 1024}K" for c in contexts], fontsize=7)
            ax.set_yticks(range(len(depths)), [f"{float(d):.0%}" for d in depths] if j == 0 else [], fontsize=7)
    save(figure, path)


def share(rows: Sequence[Row]) -> float:
    """NaN (left white) where dense solved nothing."""
    return recalled(rows) / len(rows) if rows else math.nan


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
