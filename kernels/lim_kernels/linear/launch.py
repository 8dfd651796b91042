"""Checks, scratch and the launch of a product with an int8 weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from lim_kernels.chain import launch_options
from lim_kernels.gpu import gpu_of
from lim_kernels.linear.kernel import int8_linear_kernel
from lim_kernels.linear.reference import Int8Weight

MAX_ROWS = 32  # beyond, reading half of the bytes no longer makes up for turning codes into numbers
BLOCK_N, BLOCK_K, STAGES, WARPS = 64, 128, 5, 4
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class LinearWorkspace:
    """Scratch that products share, one after another.

    Attributes:
        programs: how many programs keep the GPU busy; a weight of fewer tiles is split along K.
        partial: [2 * programs, MAX_ROWS, BLOCK_N] float32.
        arrived: [programs] int32 zeros.
    """

    programs: int
    partial: Tensor
    arrived: Tensor

    @classmethod
    def allocate(cls, device: torch.device) -> LinearWorkspace:
        """Make the buffers for one device."""
        programs = 7 * gpu_of(device).multiprocessors // 4
        partial = torch.empty(2 * programs, MAX_ROWS, BLOCK_N, dtype=torch.float32, device=device)
        return cls(programs, partial, torch.zeros(programs, dtype=torch.int32, device=device))

    def splits(self, tiles: int, k: int) -> int:
        """The smallest power of 2 that makes enough programs; each has two blocks of K at least."""
        splits = 1
        while tiles * splits < self.programs and 2 * splits * 2 * BLOCK_K <= k:
            splits *= 2
        return splits


def int8_linear(x: Tensor, weight: Int8Weight, workspace: LinearWorkspace) -> Tensor:
    """Few rows times ``weight.dequantize()``, transposed; sums are float32.

    Args:
        x: [M, K] bfloat16, float16 or float32, contiguous, M from 1 to ``MAX_ROWS``.
        weight: codes [N, K] and scales [N], contiguous.

    Returns:
        [M, N] of ``x``'s dtype.

    Raises:
        ValueError: a shape, dtype, stride or device is not as above.
    """
    check_int8_linear(x, weight, workspace)
    rows, k = x.shape
    n = len(weight.codes)
    out = torch.empty(rows, n, dtype=x.dtype, device=x.device)
    tiles = triton.cdiv(n, BLOCK_N)
    splits = workspace.splits(tiles, k)
    int8_linear_kernel[(tiles, splits)](
        x=x,
        codes=weight.codes,
        scales=weight.scales,
        out=out,
        partial=workspace.partial,
        arrived=workspace.arrived,
        num_rows=rows,
        N=n,
        K=k,
        SPLITS=splits,
        BLOCK_M=16 if rows <= 16 else MAX_ROWS,
        BLOCK_N=BLOCK_N,
        BLOCK_K=BLOCK_K,
        STAGES=STAGES,
        num_warps=WARPS,
        **launch_options(x.device),
    )
    return out


def check_int8_linear(x: Tensor, weight: Int8Weight, workspace: LinearWorkspace) -> None:
    """Raise ``ValueError`` with one line where ``int8_linear`` could not run on these tensors."""
    codes, scales = weight
    if x.ndim != 2 or codes.ndim != 2 or x.shape[1] != codes.shape[1] or scales.shape != codes.shape[:1]:
        raise ValueError(
            f"x {list(x.shape)}, codes {list(codes.shape)}, scales {list(scales.shape)}: expected [M, K], [N, K], [N]"
        )
    if not 1 <= len(x) <= MAX_ROWS:
        raise ValueError(f"x of {len(x)} rows: expected 1 to {MAX_ROWS}")
    if codes.dtype != torch.int8 or x.dtype not in DTYPES or scales.dtype != x.dtype:
        raise ValueError(
            f"x of {x.dtype}, codes of {codes.dtype}, scales of {scales.dtype}: expected one of {DTYPES}, torch.int8, "
            "and the dtype of x"
        )
    if not all(tensor.is_contiguous() for tensor in (x, codes, scales)):
        raise ValueError("x, codes and scales: expected contiguous tensors")
    if any(tensor.device != x.device for tensor in (codes, scales, workspace.partial)):
        raise ValueError(f"tensors on several devices: expected all on {x.device}")
