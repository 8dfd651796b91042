"""Who reads what while drafting: three ways, as policies of ``lim_sglang.tools.analysis.model``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bench.fidelity.policies import SINKS, streaming_llm
from lim_kernels.select.budget import split_budget
from lim_kernels.select.reference import select_token_set
from lim_sglang.layer_plan import LayerPlan, LayerRole
from lim_sglang.tools.analysis.model import LayerView, Policy
from lim_sglang.tools.analysis.policies import LessIsMore, set_mask

RECENCY_RATIO = 0.25
LIM, KEPT, WINDOW = KINDS = ("lim steps", "kept sets", "window")


class KeptSets:
    """Every layer reads what the nearest SELECT layer chose for the last verified token, and the drafts so far.

    Layers before the first SELECT layer read its set. ``sets``: by SELECT layer, [n] bool over the ``n`` tokens before
    the first that a draft step feeds.
    """

    name = KEPT

    def __init__(self, sets: Mapping[int, Tensor]) -> None:
        self.sets = sets

    def mask(self, view: LayerView) -> Tensor:
        kept = self.sets[max((layer for layer in self.sets if layer <= view.layer), default=min(self.sets))]
        drafts = kept.new_ones(view.scores.shape[2] - len(kept))
        return view.causal & torch.cat([kept, drafts])


class SetRecorder:
    """An observer of ``PolicyModel.decode``: the sets of every step and SELECT layer, at several budgets."""

    def __init__(self, plan: LayerPlan, budgets: Sequence[int]) -> None:
        self.plan = plan
        self.splits = [split_budget(budget, RECENCY_RATIO, SINKS) for budget in budgets]
        self._sets: dict[tuple[int, int], Tensor] = {}

    def __call__(self, view: LayerView, _mask: Tensor) -> None:
        if self.plan.role(view.layer) is not LayerRole.SELECT:
            return
        for split in self.splits:
            chosen = select_token_set(view.scores, view.lengths, split)
            self._sets[split.budget, view.layer] = set_mask(chosen, view.scores.shape[2])[:, 0]

    def sets(self, budget: int, step: int, length: int) -> dict[int, Tensor]:
        """By SELECT layer, [length] bool: what it chose in ``step``, which saw ``length`` tokens."""
        return {layer: self._sets[budget, layer][step, :length] for layer in self.plan.select_layers}


def draft_policy(kind: str, plan: LayerPlan, budget: int, sets: Mapping[int, Tensor]) -> Policy:
    """One of ``KINDS`` at ``K = budget``; ``sets`` are the last verified token's at that budget, as in ``KeptSets``."""
    if kind == LIM:
        return LessIsMore(plan, split_budget(budget, RECENCY_RATIO, SINKS), LIM)
    return KeptSets(sets) if kind == KEPT else streaming_llm(budget, dense_layers=0, name=WINDOW)
