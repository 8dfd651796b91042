"""What `lim-sglang calibrate` shows: the chosen plan by layer, plans of other sizes, and how to use the result."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from lim_sglang.config import ENV_CONFIG, FLAGS, LimConfig
from lim_sglang.layer_plan import LayerPlan
from lim_sglang.tools.analysis.plan_search import Costs, FoundPlan


@dataclass(frozen=True)
class Calibration:
    """What was measured and chosen. Plans and ``recall`` know only the layers that attend, numbered from 0 on.

    Attributes:
        folder: the model's.
        config: the result.
        layers: the model's numbers of the layers that attend, ascending.
        plan: the chosen plan; its select layers are those of ``config``.
        others: the best plans with other numbers of select layers.
        recall: [L][L], share of layer ``j``'s attention that the set of layer ``i`` holds.
        context, windows, samples: tokens of a window of text, windows, tokens measured at the end of each.
    """

    folder: Path
    config: LimConfig
    layers: tuple[int, ...]
    plan: FoundPlan
    others: tuple[FoundPlan, ...]
    recall: Costs
    context: int
    windows: int
    samples: int

    @property
    def num_layers(self) -> int:
        """The layers that attend."""
        return len(self.layers)

    def choosers(self, plan: FoundPlan) -> list[int | None]:
        """By attending layer: the select layer whose set it attends to; None where it reads everything."""
        selects = plan.select_layers
        return [
            None if layer in selects else max((select for select in selects if select < layer), default=None)
            for layer in range(self.num_layers)
        ]

    def mean_recall(self, plan: FoundPlan) -> float:
        """Mean over the sparse layers of the share of dense attention that they keep; 1 if there is none."""
        kept = [self.recall[chooser][layer] for layer, chooser in enumerate(self.choosers(plan)) if chooser is not None]
        return sum(kept) / len(kept) if kept else 1.0

    def read_share(self, plan: FoundPlan) -> float:
        """Bytes of KV cache that a decode step reads at ``context`` tokens, against dense attention."""
        full = plan.full_layers * self.context
        sparse = (self.num_layers - plan.full_layers) * min(self.config.budget, self.context)
        return (full + sparse) / (self.num_layers * self.context)


def print_report(calibration: Calibration, out: Path) -> None:
    """Both tables, the plan in words, and the two ways to serve with it."""
    console = Console(highlight=False, soft_wrap=True)
    found, config = calibration.plan, calibration.config
    console.print(
        f"\nMeasured with a budget of {config.budget:,} tokens, at the last {calibration.samples} tokens of each of "
        f"{calibration.windows} window{'s' * (calibration.windows > 1)} of {calibration.context:,}"
    )
    console.print(_table(("layer", "role", "reads", "recall"), layer_rows(calibration)))
    console.print(
        f"\nPlan: select layers {_listed(calibration, found)}; {found.full_layers} of {calibration.num_layers} "
        f"attending layers ({found.full_layers / calibration.num_layers:.1%}) read everything, which makes "
        f"{calibration.read_share(found):.1%} of dense attention's bytes at {calibration.context:,} tokens"
    )
    console.print("\nThe best plan by number of select layers, layers before them dense")
    headings = ("select", "layers", "read all", "bytes", "mean recall", "cost")
    console.print(_table(headings, plan_rows(calibration)))
    layers = ",".join(map(str, found.numbers(calibration.layers)))
    serve = f"sglang serve --model-path {shlex.quote(str(calibration.folder))} --attention-backend lim"
    console.print(f"\nWritten to {out}. To use it:", markup=False)
    console.print(f'  {ENV_CONFIG}="$(cat {shlex.quote(str(out))})" {serve}', markup=False)
    console.print("or only the layers:")
    console.print(f"  {serve} {FLAGS['select_layers']} {layers}", markup=False)


def layer_rows(calibration: Calibration) -> list[tuple[str, ...]]:
    """One row per attending layer: number, role, the select layer whose set it reads, expected recall."""
    roles = LayerPlan.from_select_layers(calibration.num_layers, calibration.plan.select_layers).roles
    choosers, numbers = calibration.choosers(calibration.plan), calibration.layers
    reads = [
        ("all", "") if i is None else (f"set of {numbers[i]}", f"{calibration.recall[i][layer]:.3f}")
        for layer, i in enumerate(choosers)
    ]
    return [(str(number), role.name, *read) for number, role, read in zip(numbers, roles, reads, strict=True)]


def plan_rows(calibration: Calibration) -> list[tuple[str, ...]]:
    """One row per plan of ``others``: select layers, counted and listed, full layers, bytes, mean recall, cost."""
    return [
        (
            str(len(plan.select_layers)),
            _listed(calibration, plan),
            f"{plan.full_layers} of {calibration.num_layers}",
            f"{calibration.read_share(plan):.1%}",
            f"{calibration.mean_recall(plan):.3f}",
            f"{plan.cost:.5f}",
        )
        for plan in calibration.others
    ]


def _table(headings: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(*(Column(heading, justify="right", no_wrap=True) for heading in headings))
    for row in rows:
        table.add_row(*row)
    return table


def _listed(calibration: Calibration, plan: FoundPlan) -> str:
    return ", ".join(map(str, plan.numbers(calibration.layers)))
