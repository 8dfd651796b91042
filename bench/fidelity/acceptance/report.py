"""The page and the plot of ``bench.fidelity.acceptance``'s results.

    python -m bench.fidelity.acceptance.report [--results bench/results]

Means are over texts, each written by the dense model behind one prompt; intervals are 95 % of 2,000 bootstrap samples
of these texts. Only prompts behind which everything was measured count.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import cycle, pairwise, product
from pathlib import Path
from typing import Any

from bench import driver
from bench.driver import markdown, read_rows
from bench.fidelity.acceptance.rounds import INT8, KEPT, KINDS, LIM, WINDOW
from bench.fidelity.report import Row, count, group, interval, mean, plt, same_windows, save, values, window

ARM = ("temperature", "drafts", "budget", "k")
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
    rows = same_windows(read_rows(results / "acceptance.csv"), *ARM)
    if not rows:
        parser.error(
            f"{results / 'acceptance.csv'} holds no prompt with everything measured; run python -m "
            "bench.fidelity.acceptance first"
        )
    facts = json.loads((results / "acceptance.json").read_text())
    temperatures = values(rows, "temperature")
    by_temperature = {t: [row for row in rows if row["temperature"] == t] for t in temperatures}
    plot(by_temperature, results / "acceptance.png")
    parts = [
        "# Accepted drafts, as measured\n",
        intro(rows, facts),
        *(tables(found, temperature) for temperature, found in by_temperature.items()),
        "![accepted drafts](acceptance.png)\n",
        differences(rows),
        by_column(rows, "text"),
        by_column(rows, "context"),
    ]
    (results / "acceptance.md").write_text("\n".join(parts) + LIMITS)
    print(results / "acceptance.md")


def kinds(rows: Sequence[Row]) -> list[str]:
    """The kinds of drafts that were measured, in the order of ``KINDS``."""
    return sorted(group(rows, "drafts"), key=KINDS.index)


INTRO = """
{model}, float32. Behind {prompts} prompts of {contexts} tokens ({texts}), the dense model wrote {tokens} tokens at
every temperature by itself. {rounds} rounds start in each of these texts, {every} tokens apart. Drafts that leave
nothing out were all accepted in every text, or nothing would be reported for it.

{drafts}

Cells are mean accepted drafts of a round, without the token that verification adds, and their 95 % interval over texts.
"""


WORDS = {
    LIM: "ordinary decode steps of LessIsMore, select layers {plan}; a set is chosen in every draft step",
    INT8: "the same with weights rounded to int8, as `--lim-draft-weights int8` copies them",
    KEPT: "the sets that the last verified token chose, and the drafts so far; every layer is sparse",
    WINDOW: "4 sinks and the latest tokens; every layer is sparse",
}


def intro(rows: Sequence[Row], facts: dict[str, Any]) -> str:
    plan = "+".join(map(str, facts["plan"]))
    found = {
        "drafts": "\n".join(f"- **{kind}**: {WORDS[kind].format(plan=plan)}." for kind in kinds(rows)),
        "prompts": count(rows),
        "contexts": " and ".join(f"{int(context):,}" for context in values(rows, "context")),
        "texts": ", ".join(sorted(group(rows, "text"))),
        "rounds": len(range(1, facts["tokens"] - facts["most_drafts"], facts["every"])),
    }
    return INTRO.lstrip().format(**facts | found)


def tables(rows: Sequence[Row], temperature: str) -> str:
    """Accepted drafts of one temperature by drafts, K and k."""
    if temperature == "0":
        return table("## Greedy\n\nDrafts before the first that dense attention would not choose.", rows, "accepted")
    drawn = "Drafts by rejection: a draft x, drawn from q, is accepted with probability min(1, p(x) / q(x))."
    greedy = "Greedy drafts at the same temperature, accepted with the probability that dense attention gives them:"
    of_drawn = table(f"## Temperature {temperature}\n\n{drawn}", rows, "accepted")
    return f"{of_drawn}\n{table(greedy, rows, 'accepted_greedy_drafts')}"


def table(title: str, rows: Sequence[Row], column: str) -> str:
    cells = group(rows, "drafts", "budget", "k")
    found = [
        (kind, budget, *(cell(cells[kind, budget, k], column) for k in values(rows, "k")))
        for kind, budget in product(kinds(rows), values(rows, "budget"))
    ]
    return f"{title}\n\n{markdown(('drafts', 'K', *k_headings(rows)), found)}"


def k_headings(rows: Sequence[Row]) -> list[str]:
    return [f"k = {k}" for k in values(rows, "k")]


def cell(rows: Sequence[Row], column: str) -> str:
    return f"{mean(rows, column):.2f} ({interval(rows, column, 2)})"


def differences(rows: Sequence[Row]) -> str:
    """How much each kind of drafts accepts more than the next, text by text."""
    words = "## Paired differences\n\nOf accepted drafts, text by text, with the 95 % interval of their mean.\n\n"
    cells = group(rows, *ARM)
    found = []
    for (one, other), t, budget in product(pairwise(kinds(rows)), values(rows, "temperature"), values(rows, "budget")):
        pairs = [paired(cells[t, one, budget, k], cells[t, other, budget, k]) for k in values(rows, "k")]
        found.append((f"{one} − {other}", t, budget, *(cell(pair, "accepted") for pair in pairs)))
    return words + markdown(("", "temperature", "K", *k_headings(rows)), found)


def paired(ours: Sequence[Row], theirs: Sequence[Row]) -> list[Row]:
    """Rows whose ``accepted`` is ours less theirs on the same text."""
    other = {window(row): float(row["accepted"]) for row in theirs}
    return [row | {"accepted": str(float(row["accepted"]) - other[window(row)])} for row in ours]


def by_column(rows: Sequence[Row], column: str) -> str:
    """Accepted drafts by the text's kind or its context, at one K and k."""
    budget, k = (nearest(values(rows, name), wanted) for name, wanted in zip(("budget", "k"), FOR_TEXTS, strict=True))
    chosen = [row for row in rows if (row["budget"], row["k"]) == (budget, k)]
    arms = [*product(values(rows, "temperature"), kinds(rows))]
    cells = group(chosen, column, "temperature", "drafts")
    found = [
        (value, *(f"{mean(cells[value, *arm], 'accepted'):.2f}" for arm in arms)) for value in group(chosen, column)
    ]
    headings = (column, *(f"{kind}, {name(t)}" for t, kind in arms))
    return f"## By {column}, K = {budget}, k = {k}\n\n{markdown(headings, found)}"


def name(temperature: str) -> str:
    return "greedy" if temperature == "0" else f"temperature {temperature}"


def nearest(numbers: Sequence[str], wanted: int) -> str:
    return min(numbers, key=lambda number: abs(int(number) - wanted))


def plot(by_temperature: dict[str, list[Row]], path: Path) -> None:
    """Accepted drafts against k: a panel per temperature, a colour per kind of drafts, a line style per K."""
    size = (4.5 * len(by_temperature), 4.5)
    figure, axes = plt.subplots(1, len(by_temperature), figsize=size, squeeze=False, sharey=True)
    for ax, (temperature, rows) in zip(axes[0], by_temperature.items(), strict=True):
        drafts = [int(k) for k in values(rows, "k")]
        cells = group(rows, "drafts", "budget", "k")
        ax.plot(drafts, drafts, color="lightgrey", label="all of them")
        for color, kind in zip(("tab:blue", "tab:red", "tab:orange", "tab:green"), kinds(rows), strict=False):
            for style, budget in zip(cycle((":", "--", "-", "-.")), values(rows, "budget"), strict=False):
                accepted = [mean(cells[kind, budget, str(k)], "accepted") for k in drafts]
                ax.plot(drafts, accepted, style, color=color, marker="o", markersize=3, label=f"{kind}, K = {budget}")
        ax.set(xlabel="k, drafts per round", ylabel="accepted drafts", title=name(temperature))
        ax.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7, handlelength=3.5)
    save(figure, path)


if __name__ == "__main__":
    main()
