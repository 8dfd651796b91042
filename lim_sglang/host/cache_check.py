"""What is known of a launch only once weights are loaded: dtypes of queries and cache, and what fits on the gpu.

A checkpoint may turn ``--kv-cache-dtype auto`` into fp8 by its quantisation config; backends ask here when built.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from lim_kernels.attend.config import AttendConfig, HeadShape, fit_config
from lim_kernels.gpu import gpu_of
from lim_sglang.host.refusals import DENSE, UnsupportedError

GPU_DTYPES = (torch.bfloat16, torch.float16)


def check_dtypes(q_dtype: torch.dtype, kv_dtype: torch.dtype, device: str) -> None:
    """Refuse dtypes that the backend of this kind of device does not read.

    Args:
        q_dtype: the model's (``ModelRunner.dtype``).
        kv_dtype: the cache's (``ModelRunner.kv_cache_dtype``), ``auto`` resolved.
        device: SGLang's name of the device, like ``cpu`` or ``cuda``.

    Raises:
        UnsupportedError: one line with what was found, the reason and a way out.
    """
    on_gpu = device.startswith("cuda")
    if on_gpu and q_dtype not in GPU_DTYPES:
        raise UnsupportedError(
            f"a model in {_name(q_dtype)} does not work with lim: on a GPU FlashInfer attends in bfloat16 or float16; "
            "add --dtype bfloat16"
        )
    second, fix = (
        (torch.float8_e4m3fn, "leave out --kv-cache-dtype, or add --kv-cache-dtype fp8_e4m3")
        if on_gpu
        else (torch.bfloat16, "add --kv-cache-dtype bfloat16")
    )
    if kv_dtype not in (q_dtype, second):
        raise UnsupportedError(
            f"a KV cache of {_name(kv_dtype)} under a model in {_name(q_dtype)} does not work with lim: on a "
            f"{'GPU' if on_gpu else 'CPU'} keys and values are read in the model's own dtype or {_name(second)}; {fix}"
        )


def check_heads(heads: HeadShape, device: torch.device, configs: Iterable[AttendConfig]) -> None:
    """Refuse heads for which no tiles of a launch fit on the gpu.

    Args:
        heads: sizes and dtypes on this rank.
        device: where the layers run.
        configs: constants of the launches that will be asked for.

    Raises:
        UnsupportedError: one line with what was found, the reason and a way out.
    """
    try:
        for config in configs:
            fit_config(config, heads, gpu_of(device))
    except ValueError as error:
        raise UnsupportedError(f"{error}; {DENSE}") from None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
