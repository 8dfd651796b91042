"""Reads one element behind a tensor: a memcheck that does not report this checks nothing (bench/on_gpu.sh)."""

import torch
import triton
import triton.language as tl


@triton.jit
def read_kernel(source, target, offset):
    tl.store(target, tl.load(source + offset))


if __name__ == "__main__":
    source, target = (torch.zeros(1 << 20, dtype=torch.int32, device="cuda") for _ in range(2))
    read_kernel[(1,)](source, target, 1 << 28)
    torch.cuda.synchronize()
