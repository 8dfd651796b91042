"""The dynamic programme against all plans one by one, and against plans whose cost is known by construction."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lim_sglang.layer_plan import LayerPlan, LayerRole
from lim_sglang.tools.analysis.plan_search import FoundPlan, best_plan, best_plan_within

UNUSED = float("nan")  # what may not be read: pairs where the set comes after its use


@st.composite
def cost_matrices(draw: st.DrawFn) -> list[list[float]]:
    """Small integers: sums are exact in any order, and equal costs are common."""
    size = draw(st.integers(1, 8))
    entry = st.integers(0, 9).map(float)
    return [[draw(entry) if j > i else UNUSED for j in range(size)] for i in range(size)]


def cost_by_roles(costs: list[list[float]], select_layers: tuple[int, ...]) -> float:
    """What the layer plan itself says: every sparse layer pays for the nearest select layer before it."""
    plan = LayerPlan.from_select_layers(len(costs), select_layers)
    sparse = [layer for layer in range(len(costs)) if plan.role(layer) is LayerRole.SPARSE]
    return sum(costs[max(s for s in select_layers if s < layer)][layer] for layer in sparse)


def all_plans(costs: list[list[float]], max_full: int) -> list[FoundPlan]:
    size = len(costs)
    layers = [chosen for number in range(1, size + 1) for chosen in combinations(range(size), number)]
    plans = [FoundPlan(chosen, cost_by_roles(costs, chosen)) for chosen in layers]
    return [plan for plan in plans if plan.full_layers <= max_full]


@given(cost_matrices(), st.data())
def test_found_plans_are_the_best_of_all(costs: list[list[float]], data: st.DataObject) -> None:
    number = data.draw(st.integers(1, len(costs)))
    max_full = data.draw(st.integers(number, len(costs) + 2))
    plans = all_plans(costs, max_full)
    of_number = [plan for plan in plans if len(plan.select_layers) == number]
    assert best_plan(costs, number, max_full) == min(of_number, key=lambda p: (p.cost, p.full_layers, p.select_layers))
    found = best_plan_within(costs, max_full)
    assert found in plans
    assert (found.cost, found.full_layers) == min((plan.cost, plan.full_layers) for plan in plans)


@given(st.sets(st.integers(0, 30), min_size=1), st.data())
def test_full_layers_are_the_dense_and_select_layers_of_a_hybrid(attending: set[int], data: st.DataObject) -> None:
    layers = sorted(attending)
    chosen = data.draw(st.sets(st.integers(0, len(layers) - 1), min_size=1).map(sorted).map(tuple))
    found = FoundPlan(chosen, 0.0)
    plan = LayerPlan.from_select_layers(31, found.numbers(layers)).limited_to(layers, 0, 31)
    assert found.full_layers == plan.count(LayerRole.DENSE) + plan.count(LayerRole.SELECT)
    assert len(layers) - found.full_layers == plan.count(LayerRole.SPARSE)


def test_forty_layers_and_more_take_no_time() -> None:
    costs = [[abs(j - i) / 7 + (i * 13 + j * 5) % 11 for j in range(80)] for i in range(80)]
    found = best_plan_within(costs, 40)
    assert found.cost == pytest.approx(cost_by_roles(costs, found.select_layers))
