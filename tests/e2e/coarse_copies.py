"""An SGLang plugin for tests: the lossless mode's copies of the weights have two bits, so its drafts are wrong."""

from __future__ import annotations

import torch

from lim_kernels.linear.reference import Int8Weight


def register() -> None:
    """Replace the rounding; SGLang calls this in every process."""
    from lim_sglang.speculative import draft_weights

    draft_weights.quantize = coarse


def coarse(weight: torch.Tensor) -> Int8Weight:
    """Codes -1, 0 and 1."""
    largest = weight.abs().amax(1)
    return Int8Weight((weight / largest[:, None]).round().to(torch.int8), largest)
