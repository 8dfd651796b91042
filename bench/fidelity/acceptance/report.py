"""The page and the plot of ``bench.fidelity.acceptance``'s results.

    python -m bench.fidelity.acceptance.report [--results bench/results]

Means are over texts, each written by the dense model behind one prompt; intervals are 95 % of 2,000 bootstrap samples
of these texts. Only prompts behind which everything was measured count.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench import driver
from bench.driver import read_rows
from bench.fidelity.acceptance.drafts import KINDS
from bench.fidelity.report import Row, group, interval, mean, plt, same_windows, window

FOR_TEXTS = 256, 6  # K and k of the tables by text and context, or the nearest that were measured
LIMITS = """
## What this does not say

Rounds start at evenly spaced tokens. A server's rounds start where the last one ended, more often where drafts are
often wrong, so its mean over rounds may be lower. Texts behind prompts of one kind resemble each other, so intervals
over texts are too narrow for other kinds of text.

SmolLM2-135M is a small model with 8K of context: its greedy text often repeats itself, at temperature 1 it strays.
End-of-text is a token like any other here. What a larger model's own reasoning accepts has to be measured on it.
"""


def main() -> None:
    parser, results = driver.results_folder(__doc__)
    rows = same_windows(read_rows(results / "acceptance.csv"), arm)
    if not rows:
        parser.error(
            f"{results / 'acceptance.csv'} holds no prompt with everything measured; run python -m "
            "bench.fidelity.acceptance first"
        )
    facts = json.loads((results / "acceptance.json").read_text())
    by_temperature = group(rows, lambda row: float(row["temperature"]))
    parts = ["# Accepted drafts, as measured\n", intro(rows, facts)]
    parts += [tables(found, temperature) for temperature, found in sorted(by_temperature.items())]
    parts += [
        "![accepted drafts](acceptance.png)\n",
        differences(rows),
        by_column(rows, "text"),
        by_column(rows, "context"),
    ]
    plot(by_temperature, results / "acceptance.png")
    (results / "acceptance.md").write_text("\n".join([*parts, LIMITS.strip()]) + "\n")
    print(results / "acceptance.md")


def arm(row: Row) -> tuple[str, ...]:
    return row["temperature"], row["drafts"], row["budget"], row["k"]


def numbers(rows: Sequence[Row], column: str) -> list[int]:
    return sorted({int(row[column]) for row in rows})


def kinds(rows: Sequence[Row]) -> list[str]:
    """The kinds of drafts that were measured, in the order of ``KINDS``."""
    return [kind for kind in KINDS if any(row["drafts"] == kind for row in rows)]


INTRO = """
{model}, float32. Behind {prompts} prompts of {contexts} tokens ({texts}), the dense model wrote {tokens} tokens at
every temperature by itself. {rounds} rounds start in each of these texts, {every} tokens apart. Drafts that leave
nothing out were all accepted in every text, or nothing would be reported for it.

- **lim steps**: ordinary decode steps of LessIsMore, select layers {plan}; a set is chosen in every draft step.
- **kept sets**: the sets that the last verified token chose, and the drafts so far; every layer is sparse.
- **window**: 4 sinks and the latest tokens; every layer is sparse.

Cells are mean accepted drafts of a round, without the token that verification adds, and their 95 % interval over texts.
"""


def intro(rows: Sequence[Row], facts: dict[str, Any]) -> str:
    return INTRO.lstrip().format(
        model=facts["model"],
        prompts=len({window(row) for row in rows}),
        contexts=" and ".join(f"{context:,}" for context in numbers(rows, "context")),
        texts=", ".join(sorted({row["text"] for row in rows})),
        tokens=facts["tokens"],
        rounds=len(range(1, facts["tokens"] - facts["most_drafts"], facts["every"])),
        every=facts["every"],
        plan="+".join(map(str, facts["plan"])),
    )


def tables(rows: Sequence[Row], temperature: float) -> str:
    """Accepted drafts of one temperature by drafts, K and k."""
    if temperature == 0:
        return table("## Greedy\n\nDrafts before the first that dense attention would not choose.\n", rows, "accepted")
    drawn = "Drafts by rejection: a draft x, drawn from q, is accepted with probability min(1, p(x) / q(x)).\n"
    greedy = "Greedy drafts at the same temperature, accepted with the probability that dense attention gives them:\n"
    return "\n".join(
        [
            table(f"## Temperature {temperature:g}\n\n{drawn}", rows, "accepted"),
            table(greedy, rows, "accepted_greedy_drafts"),
        ]
    )


def table(title: str, rows: Sequence[Row], column: str) -> str:
    drafts = numbers(rows, "k")
    lines = [title, f"| drafts | K | {' | '.join(f'k = {k}' for k in drafts)} |", "|---|---|" + "---|" * len(drafts)]
    cells = group(rows, lambda row: (row["drafts"], int(row["budget"]), int(row["k"])))
    for kind in kinds(rows):
        for budget in numbers(rows, "budget"):
            shown = " | ".join(cell(cells[kind, budget, k], column) for k in drafts)
            lines.append(f"| {kind} | {budget} | {shown} |")
    return "\n".join(lines) + "\n"


def cell(rows: Sequence[Row], column: str) -> str:
    low, high = interval(rows, column)
    return f"{mean(rows, column):.2f} ({low:.2f} to {high:.2f})"


def differences(rows: Sequence[Row]) -> str:
    """How much each kind of drafts accepts more than the next, text by text."""
    drafts = numbers(rows, "k")
    lines = [
        "## Paired differences\n",
        "Of accepted drafts, text by text, with the 95 % interval of their mean.\n",
        f"| | temperature | K | {' | '.join(f'k = {k}' for k in drafts)} |",
        "|---|---|---|" + "---|" * len(drafts),
    ]
    cells = group(rows, arm)
    for one, other in pairwise(kinds(rows)):
        for temperature in sorted({row["temperature"] for row in rows}, key=float):
            for budget in numbers(rows, "budget"):
                pairs = [
                    paired(cells[temperature, one, str(budget), str(k)], cells[temperature, other, str(budget), str(k)])
                    for k in drafts
                ]
                shown = " | ".join(cell(pair, "accepted") for pair in pairs)
                lines.append(f"| {one} − {other} | {temperature} | {budget} | {shown} |")
    return "\n".join(lines) + "\n"


def paired(ours: Sequence[Row], theirs: Sequence[Row]) -> list[Row]:
    """Rows whose ``accepted`` is ours less theirs on the same text."""
    other = {window(row): float(row["accepted"]) for row in theirs}
    return [row | {"accepted": str(float(row["accepted"]) - other[window(row)])} for row in ours]


def by_column(rows: Sequence[Row], column: str) -> str:
    """Accepted drafts by the text's kind or its context, at one K and k."""
    budget = nearest(numbers(rows, "budget"), FOR_TEXTS[0])
    drafts = nearest(numbers(rows, "k"), FOR_TEXTS[1])
    chosen = [row for row in rows if (int(row["budget"]), int(row["k"])) == (budget, drafts)]
    arms = [(t, kind) for t in sorted({row["temperature"] for row in rows}, key=float) for kind in kinds(rows)]
    lines = [
        f"## By {column}, K = {budget}, k = {drafts}\n",
        f"| {column} | {' | '.join(f'{kind}, {name(float(t))}' for t, kind in arms)} |",
        "|---|" + "---|" * len(arms),
    ]
    cells = group(chosen, lambda row: (row[column], row["temperature"], row["drafts"]))
    for value in dict.fromkeys(row[column] for row in chosen):
        shown = " | ".join(f"{mean(cells[value, t, kind], 'accepted'):.2f}" for t, kind in arms)
        lines.append(f"| {value} | {shown} |")
    return "\n".join(lines) + "\n"


def name(temperature: float) -> str:
    return f"temperature {temperature:g}" if temperature else "greedy"


def nearest(values: Sequence[int], wanted: int) -> int:
    return min(values, key=lambda value: abs(value - wanted))


def plot(by_temperature: dict[float, list[Row]], path: Path) -> None:
    """Accepted drafts against k: a panel per temperature, a colour per kind of drafts, a line style per K."""
    size = (4.5 * len(by_temperature), 4.5)
    figure, axes = plt.subplots(1, len(by_temperature), figsize=size, squeeze=False, sharey=True)
    styles = (":", "--", "-", "-.")
    for ax, (temperature, rows) in zip(axes[0], sorted(by_temperature.items()), strict=True):
        drafts = numbers(rows, "k")
        cells = group(rows, lambda row: (row["drafts"], int(row["budget"]), int(row["k"])))
        ax.plot(drafts, drafts, color="lightgrey", label="all of them")
        for color, kind in zip(("tab:blue", "tab:orange", "tab:green"), kinds(rows), strict=False):
            for number, budget in enumerate(numbers(rows, "budget")):
                accepted = [mean(cells[kind, budget, k], "accepted") for k in drafts]
                style = styles[number % len(styles)]
                ax.plot(drafts, accepted, style, color=color, marker="o", markersize=3, label=f"{kind}, K = {budget}")
        ax.set(xlabel="k, drafts per round", ylabel="accepted drafts", title=name(temperature))
        ax.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7, handlelength=3.5)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
