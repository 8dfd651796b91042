"""What the GPU that a launch runs on can do."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from triton.runtime import driver


class Gpu(NamedTuple):
    """What launches ask about a GPU.

    Attributes:
        capability: compute capability, major and minor.
        shared_bytes: shared memory that one block of threads may have, in bytes.
        multiprocessors: how many blocks run at once, at least.
    """

    capability: tuple[int, int]
    shared_bytes: int
    multiprocessors: int = 1

    @property
    def has_fp8(self) -> bool:
        """Whether float8_e4m3fn is a type of the GPU, and not only bytes."""
        return self.capability >= (8, 9)

    @property
    def chains(self) -> bool:
        """Whether a kernel may start before the one ahead of it has ended."""
        return self.capability >= (9, 0)


INTERPRETER = Gpu((0, 0), 1 << 40)


@cache
def gpu_of(device: torch.device) -> Gpu:
    """The GPU behind ``device``; on a CPU kernels are interpreted, as if on a GPU without features or limits."""
    if device.type != "cuda":
        return INTERPRETER
    index = torch.cuda.current_device() if device.index is None else device.index
    found = driver.active.utils.get_device_properties(index)  # what Triton goes by
    return Gpu(torch.cuda.get_device_capability(device), found["max_shared_mem"], found["multiprocessor_count"])
