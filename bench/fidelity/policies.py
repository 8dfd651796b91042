"""The rivals of LessIsMore, and LessIsMore without its parts, as policies of ``lim_sglang.tools.analysis.model``.

All keep ``K`` tokens in a sparse layer. Layers that attend to everything: 0 and 1 with StreamingLLM and Quest; 0, 1 and
the select layers with TidalDecode, LessIsMore and the oracle; 0 and the anchors with Kascade.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lim_kernels.select.budget import BudgetParts, split_budget
from lim_sglang.layer_plan import LayerPlan, LayerRole
from lim_sglang.tools.analysis.model import LayerView, Policy
from lim_sglang.tools.analysis.policies import LessIsMore

PAGE = 16
DENSE_LAYERS = 2
SINKS = 4


class StreamingLLM:
    """Four sinks and the latest ``K - 4`` tokens (arXiv 2309.17453), behind ``dense_layers`` that read everything."""

    def __init__(self, budget: int, dense_layers: int = DENSE_LAYERS, name: str = "streamingllm") -> None:
        self.name = name
        self.budget = budget
        self.dense_layers = dense_layers

    def mask(self, view: LayerView) -> Tensor:
        if view.layer < self.dense_layers:
            return view.causal
        position = torch.arange(view.scores.shape[2], device=view.scores.device)
        recent = position >= (view.lengths - (self.budget - SINKS))[:, None]
        return view.causal & ((position < SINKS) | recent)[:, None, :]


class Quest:
    """Pages of 16 tokens by an upper bound of their scores, top ``K / 16`` per query head (arXiv 2406.10774)."""

    name = "quest"

    def __init__(self, budget: int) -> None:
        self.pages = max(1, budget // PAGE)

    def mask(self, view: LayerView) -> Tensor:
        if view.layer < DENSE_LAYERS:
            return view.causal
        bounds = page_bounds(view)  # [Q, H, P]
        chosen = bounds.topk(min(self.pages, bounds.shape[2]), dim=2).indices
        kept = torch.zeros_like(bounds, dtype=torch.bool).scatter_(2, chosen, True)
        return view.causal & kept.repeat_interleave(PAGE, dim=2)[:, :, : view.scores.shape[2]]


def page_bounds(view: LayerView) -> Tensor:
    """[Q, H, P] float32: by channel, the larger of ``q * min`` and ``q * max`` over the page's tokens, summed.

    A step's last page holds the tokens up to its own; pages behind it have -inf.
    """
    tokens, kv_heads, head_dim = view.keys.shape
    group = view.queries.shape[1] // kv_heads
    missing = -tokens % PAGE
    padded = torch.cat([view.keys, view.keys[-1:].expand(missing, -1, -1)]).view(-1, PAGE, kv_heads, head_dim)
    lowest, highest = padded.cummin(1).values, padded.cummax(1).values  # by how many of the page's tokens exist
    grouped = view.queries.unflatten(1, (kv_heads, group))

    def bound(low: Tensor, high: Tensor, equation: str) -> Tensor:
        up = torch.einsum(equation, grouped.clamp(min=0), high)
        return (up + torch.einsum(equation, grouped.clamp(max=0), low)).flatten(1, 2)

    bounds = bound(lowest[:, -1], highest[:, -1], "qkgd,pkd->qkgp")  # [Q, H, P]
    last, offset = (view.lengths - 1) // PAGE, (view.lengths - 1) % PAGE
    own = bound(lowest[last, offset], highest[last, offset], "qkgd,qkd->qkg")  # [Q, H]
    page = torch.arange(bounds.shape[2], device=bounds.device)
    bounds = bounds.masked_fill(page > last[:, None, None], float("-inf"))
    return torch.where(page == last[:, None, None], own[:, :, None], bounds)


class Oracle:
    """Every query head's exact top ``K`` in the layers that LessIsMore keeps sparse: the floor of what a set costs."""

    name = "oracle"

    def __init__(self, plan: LayerPlan, budget: int) -> None:
        self.plan = plan
        self.budget = budget

    def mask(self, view: LayerView) -> Tensor:
        if self.plan.role(view.layer) is not LayerRole.SPARSE:
            return view.causal
        return top_per_row(view.scores, view.causal, self.budget)


class Reused:
    """Sets chosen in select layers and reused by the layers after them; ``choose`` makes the mask."""

    def __init__(self, name: str, plan: LayerPlan, choose: Callable[[LayerView], Tensor]) -> None:
        self.name = name
        self.plan = plan
        self.choose = choose
        self._mask: Tensor | None = None

    def mask(self, view: LayerView) -> Tensor:
        role = self.plan.role(view.layer)
        if role is LayerRole.SELECT:
            self._mask = self.choose(view)
        if role is LayerRole.SPARSE:
            assert self._mask is not None, "a plan starts with a select layer"
            return self._mask
        return view.causal


def tidal_decode(plan: LayerPlan, budget: int) -> Reused:
    """Every query head reuses its own top ``K`` (arXiv 2410.05076)."""
    return Reused("tidaldecode", plan, lambda view: top_per_row(view.scores, view.causal, budget))


def kascade(plan: LayerPlan, budget: int) -> Reused:
    """One set per KV head, from its query heads' pooled attention weights (arXiv 2512.16391)."""

    def choose(view: LayerView) -> Tensor:
        weights = view.weights(view.causal)
        kv_heads = view.keys.shape[1]
        pooled = weights.unflatten(1, (kv_heads, -1)).mean(2)  # [Q, Hk, n]
        return top_per_row(pooled, view.causal, budget).repeat_interleave(weights.shape[1] // kv_heads, dim=1)

    return Reused("kascade", plan, choose)


def without_unification(plan: LayerPlan, split: BudgetParts) -> Reused:
    """LessIsMore, but every query head keeps its own ``m`` tokens beside sinks and window."""

    def choose(view: LayerView) -> Tensor:
        position = torch.arange(view.scores.shape[2], device=view.scores.device)
        fixed = (position < split.sinks) | (position >= (view.lengths - split.recent)[:, None])
        fixed = fixed[:, None, :] & view.causal
        return fixed | top_per_row(view.scores, view.causal & ~fixed, split.selected)

    return Reused("no unification", plan, choose)


def top_per_row(values: Tensor, allowed: Tensor, count: int) -> Tensor:
    """Where the ``count`` largest allowed values of every row are: [Q, H, n] float32 to bool."""
    masked = values.masked_fill(~allowed, float("-inf"))
    chosen = masked.topk(min(count, masked.shape[2]), dim=2).indices
    return torch.zeros_like(masked, dtype=torch.bool).scatter_(2, chosen, True) & allowed


def policies(num_layers: int, budget: int, select_layers: tuple[int, ...]) -> list[tuple[Policy, tuple[int, ...]]]:
    """Every arm of the comparison at one budget, with the layers in which it selects; LessIsMore comes first."""
    plan = LayerPlan.from_select_layers(num_layers, select_layers)
    once = select_layers[:1]
    paper_like = (2, num_layers // 3)
    anchors = (1, num_layers // 3, select_layers[-1])
    split = split_budget(budget, 0.25, SINKS)

    def lim(layers: tuple[int, ...], parts: BudgetParts, name: str) -> tuple[Policy, tuple[int, ...]]:
        return LessIsMore(LayerPlan.from_select_layers(num_layers, layers), parts, name), layers

    return [
        lim(select_layers, split, "lessismore"),
        lim(paper_like, split, "paper-like plan"),
        (tidal_decode(plan, budget), select_layers),
        (Quest(budget), ()),
        (StreamingLLM(budget), ()),
        (kascade(LayerPlan.from_select_layers(num_layers, anchors), budget), anchors),
        (Oracle(plan, budget), select_layers),
        (without_unification(plan, split), select_layers),
        lim(select_layers, BudgetParts(budget, budget - SINKS, SINKS, 0), "no recency"),
        lim(select_layers, split_budget(budget, 0.25, 0), "no sinks"),
        lim(once, split, "no re-selection"),
    ]
