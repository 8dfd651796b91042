"""Dense attention and LessIsMore as policies of ``analysis.model``."""

from __future__ import annotations

from torch import Tensor

from lim_kernels.select.budget import BudgetParts
from lim_kernels.select.reference import TokenSet, select_token_set
from lim_sglang.layer_plan import LayerPlan, LayerRole
from lim_sglang.tools.analysis.model import LayerView


class Dense:
    """Every step reads everything before it."""

    name = "dense"

    def mask(self, view: LayerView) -> Tensor:
        """[Q, 1, n] bool."""
        return view.causal


class LessIsMore:
    """The specification: select layers choose one set for all heads of the layers after them (arXiv 2508.07101)."""

    def __init__(self, plan: LayerPlan, parts: BudgetParts, name: str = "lessismore") -> None:
        self.name = name
        self.plan = plan
        self.parts = parts
        self._set: Tensor | None = None

    def mask(self, view: LayerView) -> Tensor:
        """[Q, 1, n] bool."""
        role = self.plan.role(view.layer)
        if role is LayerRole.SPARSE:
            assert self._set is not None, "a plan's first sparse layer follows a select layer"
            return self._set
        if role is LayerRole.SELECT:
            chosen = select_token_set(view.scores, view.lengths, self.parts)
            self._set = set_mask(chosen, view.scores.shape[2])
        return view.causal


def set_mask(chosen: TokenSet, num_tokens: int) -> Tensor:
    """[Q, 1, n] bool, true at a set's positions."""
    positions = chosen.positions
    mask = positions.new_zeros(positions.shape[0], num_tokens + 1)
    mask.scatter_(1, positions.where(positions >= 0, num_tokens), 1)  # the last column takes what is no position
    return mask[:, None, :num_tokens].bool()
