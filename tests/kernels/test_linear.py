"""Products with int8 weights against the definition: ragged sizes, poisoned scratch, more programs than tiles."""

from __future__ import annotations

import re

import pytest
import torch

from lim_kernels.linear.launch import MAX_ROWS, LinearWorkspace, int8_linear
from lim_kernels.linear.reference import Int8Weight, quantize

from .cases import DEVICE, ON_GPU

DTYPES = [torch.bfloat16, torch.float16] if ON_GPU else [torch.float32, torch.float16]
TOLERANCE = {torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float32: 1e-6}  # of the norm: one rounding of the output
SMOLLM2 = [(960, 576), (576, 576), (3072, 576), (576, 1536), (49_152, 576)]
QWEN3_8B = [(6144, 4096), (4096, 4096), (24_576, 4096), (4096, 12_288), (151_936, 4096)]
QWEN3_32B_TP2 = [(5120, 5120), (5120, 4096), (25_600, 5120), (5120, 12_800), (75_968, 5120)]
SMALL = [(100, 72), (64, 1100), (1, 16), (130, 640)]


def workspace(programs: int | None = None) -> LinearWorkspace:
    """Scratch whose partial sums hold NaNs; for ``programs`` if the GPU's number is not to count."""
    made = LinearWorkspace.allocate(torch.device(DEVICE))
    if programs is not None:
        made = LinearWorkspace(programs, made.partial.new_empty(2 * programs, *made.partial.shape[1:]), made.arrived)
        made = LinearWorkspace(programs, made.partial, made.arrived.new_zeros(programs))
    made.partial.fill_(torch.nan)
    return made


def operands(rows: int, n: int, k: int, dtype: torch.dtype) -> tuple[torch.Tensor, Int8Weight]:
    torch.manual_seed(n * k + rows)
    x, weight = (torch.randn(size, k, device=DEVICE).to(dtype) for size in (rows, n))
    return x, quantize(weight)


def check(x: torch.Tensor, weight: Int8Weight, scratch: LinearWorkspace) -> torch.Tensor:
    """The product is the definition's, in float64."""
    out = int8_linear(x, weight, scratch)
    expected = x.double() @ (weight.codes.double() * weight.scales.double()[:, None]).T
    assert (out.double() - expected).norm() <= TOLERANCE[x.dtype] * expected.norm()
    assert not scratch.arrived.any(), "the next launch counts arrivals from zero"
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), SMALL)
def test_the_product_is_the_references(n: int, k: int, dtype: torch.dtype) -> None:
    scratch = workspace()
    for rows in (1, 5, 16, 17, MAX_ROWS):
        check(*operands(rows, n, k, dtype), scratch)


def test_programs_that_share_a_tile_add_up_in_their_order() -> None:
    """Alone, by two, by four, where the last of four has nothing to do; twice the same, to the last bit."""
    x, weight = operands(7, 70, 1150, DTYPES[0])
    for programs, splits in ((1, 1), (3, 2), (8, 4)):
        scratch = workspace(programs)
        assert scratch.splits(2, 1150) == splits
        assert torch.equal(check(x, weight, scratch), check(x, weight, scratch))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), SMOLLM2 + QWEN3_8B + QWEN3_32B_TP2)
def test_the_shapes_of_models(n: int, k: int, dtype: torch.dtype) -> None:
    scratch = workspace()
    for rows in (1, 8, MAX_ROWS):
        x, weight = operands(rows, n, k, dtype)
        assert torch.equal(check(x, weight, scratch), check(x, weight, scratch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_codes_are_the_nearest(dtype: torch.dtype) -> None:
    weight = torch.randn(20, 33).to(dtype)
    weight[3] = 0
    weight[4, 7] = 1000
    found = quantize(weight)
    assert found.scales.dtype == dtype
    assert found.codes.abs().amax(1).tolist() == [127 if row != 3 else 0 for row in range(20)]
    off = (found.dequantize() - weight.float()).abs()
    half = found.scales.float()[:, None] / 2
    clipped = (
        weight.float().abs().amax(1, keepdim=True) - 127 * found.scales.float()[:, None]
    )  # scales are rounded, too
    assert (off <= torch.maximum(half, clipped) * (1 + 1e-6)).all()


def test_bad_operands_are_refused_in_one_line() -> None:
    x, weight = operands(4, 64, 128, DTYPES[0])
    cases = {
        "x [4, 127], codes [64, 128], scales [64]": (x[:, :127], weight),
        f"x of {MAX_ROWS + 1} rows: expected 1 to {MAX_ROWS}": (x[:1].expand(MAX_ROWS + 1, -1), weight),
        "x of 0 rows": (x[:0], weight),
        "torch.float64": (x.double(), weight),
        "torch.int16": (x, Int8Weight(weight.codes.short(), weight.scales)),
        "expected contiguous": (x.T.contiguous().T, weight),
    }
    for message, (inputs, given) in cases.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            int8_linear(inputs, given, workspace())
