"""The layer plans of ``bench.fidelity``: spread by hand, and calibrated as `lim-sglang calibrate` does it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.progress import Progress

from bench.fidelity.subject import Subject
from bench.fidelity.texts import CALIBRATION_TEXT, TEXTS
from lim_kernels.select.budget import BudgetParts
from lim_sglang.tools.analysis.plan_search import best_plan, best_plan_within
from lim_sglang.tools.analysis.recall import ReuseMeter
from lim_sglang.tools.analysis.streaming import StreamedModel
from lim_sglang.tools.analysis.texts import cut_windows
from lim_sglang.tools.calibrate.command import CONTEXT, DENSE_LAYERS, SAMPLES, WINDOWS

Plan = tuple[int, ...]
BY_HAND = (
    "1+20 2 2+20 2+10 2+15 2+12+20 2+10+15+20 2+8+14+20 2+8+14+20+26 2+6+10+14+18+22+26 2+5+8+11+14+17+20+23+26+28"
)
SIZES = range(3, 13)  # layers that attend to everything
HELD_OUT = tuple(text for text in TEXTS if text != CALIBRATION_TEXT)


def plan_name(layers: Sequence[int]) -> str:
    """Select layers as rows name them."""
    return "+".join(map(str, layers))


def calibrated(subject: Subject, device: str, split: BudgetParts, progress: Progress) -> list[Plan]:
    """The best select layers by the number of layers that may attend to everything, and the best two."""
    model = StreamedModel(subject.folder, device, torch.float32)
    windows = cut_windows(subject.tokenizer, TEXTS[CALIBRATION_TEXT](), CONTEXT, WINDOWS, SAMPLES)
    meter = ReuseMeter(model.num_layers, split)
    layers = model.forward(windows, SAMPLES, meter)
    for _ in progress.track(layers, model.num_layers + 1, description="calibration"):
        pass
    costs = meter.error.tolist()
    found = [best_plan_within(costs, full) for full in SIZES if full <= model.num_layers]
    found.append(best_plan(costs, 2, DENSE_LAYERS + 2))
    return list(dict.fromkeys(plan.select_layers for plan in found))
