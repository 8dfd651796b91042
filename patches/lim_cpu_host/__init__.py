"""Stand-ins that let SGLang run without a GPU. Never active where a process may use one.

``python -m lim_cpu_host enable`` writes a start-up file into this environment's site-packages, so that every
Python process of the environment, SGLang's children included, calls ``activate()``; ``disable`` removes it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

START_UP_FILE = "lim_sglang_cpu_host.pth"
# Each line of such a file must start with "import"; it stays quiet once lim-sglang is uninstalled.
START_UP_LINE = (
    "import importlib.util as u; u.find_spec('lim_cpu_host') and "
    "__import__('lim_cpu_host', fromlist=['activate']).activate()\n"
)
GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg")  # the second is WSL's; the Makefile looks for the same


def gpu_device(devices: Sequence[str] = GPU_DEVICES) -> str | None:
    """The first device file of an NVIDIA driver, or None, also where CUDA_VISIBLE_DEVICES hides every GPU.

    Asks no driver and imports nothing.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    return next((device for device in devices if Path(device).exists()), None)


def is_active() -> bool:
    """Whether ``activate()`` took effect in this process."""
    from lim_cpu_host import sgl_kernel

    return any(isinstance(finder, sgl_kernel.Finder) for finder in sys.meta_path)


def activate(devices: Sequence[str] = GPU_DEVICES) -> bool:
    """Install the import hooks unless this process may use a GPU; idempotent.

    Returns:
        Whether the stand-ins are active.
    """
    if gpu_device(devices) is not None:
        return False
    if not is_active():
        from lim_cpu_host import sgl_kernel, torchvision_ops

        sys.meta_path[:0] = [sgl_kernel.Finder(), torchvision_ops.Finder()]
        os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    return True


def deactivate() -> None:
    """Remove the import hooks; modules imported through them stay."""
    from lim_cpu_host import sgl_kernel, torchvision_ops

    sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, sgl_kernel.Finder | torchvision_ops.Finder)]
