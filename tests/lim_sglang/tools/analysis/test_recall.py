"""The meter against its formulas written out token by token, and at its limits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lim_kernels.select.budget import BudgetParts, split_budget
from lim_kernels.select.reference import select_token_set
from lim_sglang.tools.analysis.model import LayerView
from lim_sglang.tools.analysis.recall import ReuseMeter
from lim_sglang.tools.analysis.streaming import LayerSample

LAYERS, STEPS, HEADS, KV_HEADS, DIM, HIDDEN = 4, 3, 6, 2, 8, 10
SPLIT = split_budget(12, 0.25, 2)


def sample(layer: int, window: int, length: int, peak: float = 1.0) -> LayerSample:
    """Random attention of one layer over ``length`` tokens; a larger ``peak`` concentrates it."""
    draw = torch.Generator().manual_seed(100 * window + layer)
    keys = torch.randn(length, KV_HEADS, DIM, generator=draw)
    values = torch.randn(length, KV_HEADS, DIM, generator=draw)
    queries = torch.randn(STEPS, HEADS, DIM, generator=draw) * peak
    scores = torch.einsum("qhd,nhd->qhn", queries, keys.repeat_interleave(HEADS // KV_HEADS, 1))
    lengths = torch.arange(length - STEPS + 1, length + 1)
    weight = torch.randn(HIDDEN, HEADS * DIM, generator=draw)
    view = LayerView(layer, queries, keys, values, scores, lengths, DIM**-0.5)
    return LayerSample(
        window, view, torch.randn(STEPS, HIDDEN, generator=draw), lambda heads: heads.flatten(1) @ weight.T
    )


def samples(length: int = 40, windows: int = 2, peak: float = 1.0) -> list[LayerSample]:
    """As the streamed model hands them out: layer by layer, every text in each."""
    return [sample(layer, window, length, peak) for layer in range(LAYERS) for window in range(windows)]


def metered(items: Sequence[LayerSample], split: BudgetParts = SPLIT) -> ReuseMeter:
    meter = ReuseMeter(LAYERS, split)
    for item in items:
        meter(item)
    return meter


def by_hand(chooser: LayerSample, user: LayerSample, step: int) -> tuple[float, float]:
    """Recall and error of one token, head by head over explicit positions."""
    view, length = user.view, int(user.view.lengths[step])
    chosen = select_token_set(chooser.view.scores, chooser.view.lengths, SPLIT).positions[step]
    outputs: dict[str, list[Tensor]] = {"all": [], "set": []}
    recalls = []
    for head in range(HEADS):
        logits = view.scores[step, head, :length] * view.scale
        values = view.values[:length, head // (HEADS // KV_HEADS)]
        weights = logits.softmax(0)
        recalls.append(weights[chosen].sum())
        outputs["all"].append(weights @ values)
        outputs["set"].append(logits[chosen].softmax(0) @ values[chosen])
    dense, sparse = (torch.stack(outputs[name])[None] for name in ("all", "set"))
    moved = user.project(sparse)[0] - user.project(dense)[0]
    return float(torch.stack(recalls).mean()), float(moved.square().sum() / user.residual[step].square().sum())


def test_recall_and_error_are_what_they_say() -> None:
    items = samples()
    meter = metered(items)
    at = {(item.view.layer, item.window): item for item in items}
    for i in range(LAYERS):
        for j in range(i + 1, LAYERS):
            found = [by_hand(at[i, w], at[j, w], step) for w in range(2) for step in range(STEPS)]
            recall, error = (sum(values) / len(found) for values in zip(*found, strict=True))
            assert meter.recall[i, j].item() == pytest.approx(recall, rel=1e-5)
            assert meter.error[i, j].item() == pytest.approx(error, rel=1e-4)
            assert 0 < recall < 1


def test_only_later_layers_reuse_a_set() -> None:
    meter = metered(samples())
    assert torch.equal(meter.recall != 0, torch.ones(LAYERS, LAYERS).triu(1).bool())
    assert torch.equal(meter.error != 0, torch.ones(LAYERS, LAYERS).triu(1).bool())


def test_attention_that_the_set_misses_wholly_is_finite() -> None:
    items = [sample(layer, 0, 60, peak=1000.0) for layer in range(LAYERS)]
    meter = metered(items, split_budget(1, 0.0, 0))
    assert meter.error.isfinite().all()
    assert meter.recall[0, 1:].min() < 0.2


def test_before_the_first_sample_there_is_nothing() -> None:
    meter = metered([])
    assert not meter.recall.any()
    assert not meter.error.any()
