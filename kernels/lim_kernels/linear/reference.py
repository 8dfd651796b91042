"""The specification: a weight rounded to int8 by rows. The product is that with the rounded weight."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Int8Weight(NamedTuple):
    """A weight [N, K] as codes times the scale of their row.

    Attributes:
        codes: [N, K] int8, from -127 to 127.
        scales: [N] of the weight's dtype.
    """

    codes: Tensor
    scales: Tensor

    def dequantize(self) -> Tensor:
        """[N, K] float32."""
        return self.codes.float() * self.scales.float()[:, None]


def quantize(weight: Tensor) -> Int8Weight:
    """Round a weight [N, K] of a floating dtype to the nearest codes; the largest of a row becomes 127 or -127."""
    largest = weight.abs().amax(1).float()
    scales = (largest / 127).clamp(min=torch.finfo(weight.dtype).tiny).to(weight.dtype)
    codes = (weight.float() / scales.float()[:, None]).round().clamp(-127, 127)
    return Int8Weight(codes.to(torch.int8), scales)
