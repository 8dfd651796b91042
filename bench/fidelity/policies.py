"""The rivals of LessIsMore, and LessIsMore without its parts, as policies of ``lim_sglang.tools.analysis.model``.

All keep ``K`` tokens in a sparse layer. Layers that attend to everything: 0 and 1 with StreamingLLM and Quest; 0, 1 and
the select layers with TidalDecode, LessIsMore and the oracle; 0 and the anchors with Kascade.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lim_kernels.select.budget import BudgetParts, split_budget
from lim_sglang.layer_plan import LayerPlan, LayerRole
from lim_sglang.tools.analysis.model import LayerView, Policy
from lim_sglang.tools.analysis.policies import LessIsMore

PAGE = 16
DENSE_LAYERS = 2
SINKS = 4
Choose = Callable[[LayerView], Tensor]
"""Makes a layer's mask, within ``view.causal``."""


@dataclass
class Chosen:
    """Every layer that is ``sparse`` chooses for itself."""

    name: str
    sparse: Callable[[int], bool]
    choose: Choose

    def mask(self, view: LayerView) -> Tensor:
        return self.choose(view) if self.sparse(view.layer) else view.causal


def streaming_llm(budget: int, dense_layers: int = DENSE_LAYERS, name: str = "streamingllm") -> Chosen:
    """Four sinks and the latest ``K - 4`` tokens (arXiv 2309.17453), behind ``dense_layers`` that read everything."""
    return Chosen(name, lambda layer: layer >= dense_layers, lambda view: fixed(view, SINKS, budget - SINKS))


def fixed(view: LayerView, sinks: int, recent: int) -> Tensor:
    """[Q, 1, n] bool, the first and the latest tokens that each step may read."""
    position = torch.arange(view.scores.shape[2], device=view.scores.device)
    kept = (position < sinks) | (position >= (view.lengths - recent)[:, None])
    return view.causal & kept[:, None, :]


def quest(budget: int) -> Chosen:
    """Pages of 16 tokens by an upper bound of their scores, top ``K / 16`` per query head (arXiv 2406.10774)."""

    def choose(view: LayerView) -> Tensor:
        bounds = page_bounds(view)  # [Q, H, P]
        kept = top_per_row(bounds, torch.ones_like(bounds, dtype=torch.bool), max(1, budget // PAGE))
        return view.causal & kept.repeat_interleave(PAGE, dim=2)[:, :, : view.scores.shape[2]]

    return Chosen("quest", lambda layer: layer >= DENSE_LAYERS, choose)


def page_bounds(view: LayerView) -> Tensor:
    """[Q, H, P] float32: by channel, the larger of ``q * min`` and ``q * max`` over the page's tokens, summed.

    A step's last page holds the tokens up to its own; pages behind it have -inf.
    """
    tokens, kv_heads, head_dim = view.keys.shape
    missing = -tokens % PAGE
    padded = torch.cat([view.keys, view.keys[-1:].expand(missing, -1, -1)]).view(-1, PAGE, kv_heads, head_dim)
    lowest, highest = padded.cummin(1).values, padded.cummax(1).values  # by how many of the page's tokens exist
    grouped = view.queries.unflatten(1, (kv_heads, -1))

    def bound(low: Tensor, high: Tensor, equation: str) -> Tensor:
        up = torch.einsum(equation, grouped.clamp(min=0), high)
        return (up + torch.einsum(equation, grouped.clamp(max=0), low)).flatten(1, 2)

    bounds = bound(lowest[:, -1], highest[:, -1], "qkgd,pkd->qkgp")  # [Q, H, P]
    last, offset = (view.lengths - 1) // PAGE, (view.lengths - 1) % PAGE
    own = bound(lowest[last, offset], highest[last, offset], "qkgd,qkd->qkg")  # [Q, H]
    page = torch.arange(bounds.shape[2], device=bounds.device)
    bounds = bounds.masked_fill(page > last[:, None, None], float("-inf"))
    return torch.where(page == last[:, None, None], own[:, :, None], bounds)


def oracle(plan: LayerPlan, budget: int) -> Chosen:
    """Every query head's exact top ``K`` in the layers that LessIsMore keeps sparse: the floor of what a set costs."""
    return Chosen("oracle", lambda layer: plan.role(layer) is LayerRole.SPARSE, best_of(budget))


@dataclass
class Reused:
    """Sets chosen in select layers and reused by the layers after them."""

    name: str
    plan: LayerPlan
    choose: Choose

    def mask(self, view: LayerView) -> Tensor:
        role = self.plan.role(view.layer)
        if role is LayerRole.SELECT:
            self._mask = self.choose(view)
        return self._mask if role is LayerRole.SPARSE else view.causal


def tidal_decode(plan: LayerPlan, budget: int) -> Reused:
    """Every query head reuses its own top ``K`` (arXiv 2410.05076)."""
    return Reused("tidaldecode", plan, best_of(budget))


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
        always = fixed(view, split.sinks, split.recent)
        return always | top_per_row(view.scores, view.causal & ~always, split.selected)

    return Reused("no unification", plan, choose)


def best_of(budget: int) -> Choose:
    return lambda view: top_per_row(view.scores, view.causal, budget)


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
        (quest(budget), ()),
        (streaming_llm(budget), ()),
        (kascade(LayerPlan.from_select_layers(num_layers, anchors), budget), anchors),
        (oracle(plan, budget), select_layers),
        (without_unification(plan, split), select_layers),
        lim(select_layers, BudgetParts(budget, budget - SINKS, SINKS, 0), "no recency"),
        lim(select_layers, split_budget(budget, 0.25, 0), "no sinks"),
        lim(once, split, "no re-selection"),
    ]
