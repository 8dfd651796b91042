"""The meter against its formulas written out token by token, and at its limits."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from lim_kernels.select.budget import split_budget
from lim_kernels.select.reference import select_token_set
from lim_sglang.tools.analysis.model import LayerView
from lim_sglang.tools.analysis.recall import ReuseMeter
from lim_sglang.tools.analysis.streaming import LayerSample

LAYERS, STEPS, HEADS, KV_HEADS, DIM, HIDDEN = 4, 3, 6, 2, 8, 10
SPLIT = split_budget(12, 0.25, 2)


def sample(layer: int, window: int, length: int, peak: float) -> LayerSample:
    """Random attention of one layer over ``length`` tokens; a larger ``peak`` concentrates it."""
    draw = torch.Generator().manual_seed(100 * window + layer)
    keys = torch.randn(length, KV_HEADS, DIM, generator=draw)
    values = torch.randn(length, KV_HEADS, DIM, generator=draw)
    queries = torch.randn(STEPS, HEADS, DIM, generator=draw) * peak
    scores = torch.einsum("qhd,nhd->qhn", queries, keys.repeat_interleave(HEADS // KV_HEADS, 1))
    lengths = torch.arange(length - STEPS + 1, length + 1)
    weight = torch.randn(HIDDEN, HEADS * DIM, generator=draw)
    view = LayerView(3 + 4 * layer, queries, keys, values, scores, lengths, DIM**-0.5)
    return LayerSample(
        window, view, torch.randn(STEPS, HIDDEN, generator=draw), lambda heads: heads.flatten(1) @ weight.T
    )


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


@pytest.mark.parametrize("peak", [1.0, 1000.0])
def test_recall_and_error_are_what_they_say(peak: float) -> None:
    """Also where a set misses attention wholly; only later layers reuse a set. The model numbers them 3, 7, 11, 15."""
    meter = ReuseMeter(LAYERS, SPLIT)
    at = {(layer, window): sample(layer, window, 40, peak) for layer in range(LAYERS) for window in range(2)}
    for item in at.values():
        meter(item)
    for i, j in combinations(range(LAYERS), 2):
        found = [by_hand(at[i, w], at[j, w], step) for w in range(2) for step in range(STEPS)]
        recall, error = (sum(values) / len(found) for values in zip(*found, strict=True))
        assert meter.recall[i, j].item() == pytest.approx(recall, rel=1e-5, abs=1e-6)
        assert meter.error[i, j].item() == pytest.approx(error, rel=1e-4)
        assert 0 < recall < 1
    assert not meter.recall.tril().any()
    assert not meter.error.tril().any()
