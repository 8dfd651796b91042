"""The layer plans of ``bench.fidelity``: spread by hand, and calibrated as `lim-sglang calibrate` does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.fidelity.texts import CALIBRATION_TEXT, TEXTS
from lim_kernels.select.budget import BudgetParts
from lim_sglang.tools.analysis.plan_search import best_plan, best_plan_within
from lim_sglang.tools.analysis.recall import ReuseMeter
from lim_sglang.tools.analysis.streaming import LayerSample, StreamedModel
from lim_sglang.tools.analysis.texts import cut_windows
from lim_sglang.tools.calibrate.command import CONTEXT, DENSE_LAYERS, SAMPLES, WINDOWS

Plan = tuple[int, ...]
BY_HAND: tuple[Plan, ...] = (
    (1, 20),
    (2,),
    (2, 20),
    (2, 10),
    (2, 15),
    (2, 12, 20),
    (2, 10, 15, 20),
    (2, 8, 14, 20),
    (2, 8, 14, 20, 26),
    (2, 6, 10, 14, 18, 22, 26),
    (2, 5, 8, 11, 14, 17, 20, 23, 26, 28),
)
SIZES = range(3, 13)  # layers that attend to everything
HELD_OUT = tuple(text for text in TEXTS if text != CALIBRATION_TEXT)


def calibrated(
    folder: Path, tokenizer: Any, device: str, split: BudgetParts, advance: Callable[[float], None]
) -> list[Plan]:
    """The best select layers by the number of layers that may attend to everything, and the best two.

    Args:
        advance: called with the share of the work that is done.
    """
    model = StreamedModel(folder, device, torch.float32)
    windows = cut_windows(tokenizer, TEXTS[CALIBRATION_TEXT](), CONTEXT, WINDOWS, SAMPLES)
    meter = ReuseMeter(model.num_layers, split)
    seen = 0

    def observe(sample: LayerSample) -> None:
        nonlocal seen
        meter(sample)
        seen += 1
        advance(seen / (model.num_layers * len(windows)))

    for _ in model.forward(windows, SAMPLES, observe):
        pass
    costs = meter.error.tolist()
    found = [best_plan_within(costs, full) for full in SIZES if full <= model.num_layers]
    found.append(best_plan(costs, 2, DENSE_LAYERS + 2))
    return list(dict.fromkeys(plan.select_layers for plan in found))
