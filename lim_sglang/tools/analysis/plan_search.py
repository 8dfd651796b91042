"""The best layer plan by exact dynamic programming over what it costs layer ``j`` to reuse the set of layer ``i``.

A plan's cost is a sum over its sparse layers, each of which pays for the nearest select layer before it. So the
layers behind a select layer form a problem of their own, whatever was chosen before.

Layers are those that attend, numbered from 0 on without gaps; ``FoundPlan.numbers`` tells the model's own numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

Costs = Sequence[Sequence[float]]
"""[L][L]: row ``i``, column ``j > i``, what it costs layer ``j`` to attend to the set of layer ``i``; others unused."""


@dataclass(frozen=True)
class FoundPlan:
    """Ascending select layers and the sum of the costs of the sparse layers."""

    select_layers: tuple[int, ...]
    cost: float

    @property
    def full_layers(self) -> int:
        """Layers that read the whole cache: those before the first select layer, and the select layers."""
        return self.select_layers[0] + len(self.select_layers)

    def numbers(self, attending: Sequence[int]) -> tuple[int, ...]:
        """The select layers as numbered in a model whose layers ``attending``, ascending, attend."""
        return tuple(attending[layer] for layer in self.select_layers)


def best_plan(costs: Costs, num_selects: int, max_full_layers: int) -> FoundPlan:
    """The cheapest plan with ``num_selects`` select layers and at most ``max_full_layers`` that read everything.

    Among plans of equal cost the one with fewer full layers, then the one with lower select layers.
    """
    return _best_start(_cheapest_behind(costs, num_selects)[-1], max_full_layers - num_selects)


def best_plan_within(costs: Costs, max_full_layers: int) -> FoundPlan:
    """The cheapest plan with at most ``max_full_layers`` that read everything, of any number of select layers."""
    behind = _cheapest_behind(costs, min(max_full_layers, len(costs)))
    found = [_best_start(row, max_full_layers - num_selects) for num_selects, row in enumerate(behind, 1)]
    return min(found, key=lambda plan: (plan.cost, plan.full_layers))


def _best_start(behind: Sequence[FoundPlan], max_first: int) -> FoundPlan:
    """The cheapest of ``behind[0 .. max_first]``; of equals the first, which has the fewest full layers."""
    return min(behind[: max_first + 1], key=lambda plan: plan.cost)


def _cheapest_behind(costs: Costs, num_selects: int) -> list[list[FoundPlan]]:
    """Item ``[m][i]``: the cheapest way to treat layers ``i .. L-1`` with ``i`` and ``m`` later ones selecting.

    Where ``m`` layers do not fit behind ``i`` the cost is infinite.
    """
    num_layers = len(costs)
    # reused[i][k - i - 1]: layers i+1 .. k-1 attend to the set of layer i.
    reused = [[0.0, *accumulate(costs[i][i + 1 :])] for i in range(num_layers)]
    table = [[FoundPlan((i,), reused[i][-1]) for i in range(num_layers)]]
    for _ in range(1, num_selects):
        row = []
        for i in range(num_layers):
            ways = [
                FoundPlan((i, *rest.select_layers), reused[i][rest.select_layers[0] - i - 1] + rest.cost)
                for rest in table[-1][i + 1 :]
            ]
            row.append(min(ways, key=lambda plan: plan.cost, default=FoundPlan((i,), float("inf"))))
        table.append(row)
    return table
