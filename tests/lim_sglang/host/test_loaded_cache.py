"""What is refused once weights are loaded: dtypes as SGLang resolves them, heads that no tile fits."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from lim_kernels.attend.config import AttendConfig, HeadShape
from lim_kernels.gpu import Gpu
from lim_sglang.host import loaded
from lim_sglang.host.loaded import check_dtypes, check_heads
from lim_sglang.host.refusals import UnsupportedError

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def resolved(flag: str, quantisation: str | None, dtype: torch.dtype) -> torch.dtype:
    """The KV cache's dtype as SGLang decides it, for a checkpoint whose quantisation config names one."""
    from sglang.srt.mem_cache.kv_cache_dtype import configure_kv_cache_dtype

    model = SimpleNamespace(quant_config=SimpleNamespace(kv_cache_quant_algo=quantisation))
    known = {"server_args_kv_cache_dtype": flag, "model": model, "model_dtype": dtype}
    others = dict.fromkeys(inspect.signature(configure_kv_cache_dtype).parameters.keys() - known.keys())
    return configure_kv_cache_dtype(**known, **others)[1]


@pytest.mark.parametrize(
    ("flag", "quantisation", "dtype", "device", "found"),
    [
        ("auto", None, BF16, "cuda", ""),
        ("auto", "FP8", FP16, "cuda:1", ""),
        ("auto", "NVFP4", BF16, "cuda", ""),  # weights' algorithms other than FP8 leave the cache alone
        ("fp8_e4m3", None, FP16, "cuda", ""),
        ("bfloat16", "FP8", BF16, "cuda", ""),
        ("auto", None, FP32, "cpu", ""),
        ("auto", "FP8", BF16, "cpu", "float8_e4m3fn under a model in bfloat16 .* add --kv-cache-dtype bfloat16"),
        ("bfloat16", None, FP16, "cuda", "bfloat16 under a model in float16 .* leave out --kv-cache-dtype"),
        ("auto", None, FP32, "cuda", "a model in float32 .* add --dtype bfloat16"),
    ],
)
def test_dtypes(flag: str, quantisation: str | None, dtype: torch.dtype, device: str, found: str) -> None:
    kv_dtype = resolved(flag, quantisation, dtype)
    with pytest.raises(UnsupportedError, match=found) if found else nullcontext():
        check_dtypes(dtype, kv_dtype, device)


@pytest.mark.parametrize("kv_dtype", [torch.float8_e5m2, torch.float4_e2m1fn_x2], ids=str)
def test_other_formats_are_refused(kv_dtype: torch.dtype) -> None:
    """By name they are refused before weights are loaded; should a checkpoint ever bring one, then here."""
    with pytest.raises(UnsupportedError, match=r"a KV cache of float[48]_e[25]m[12]"):
        check_dtypes(BF16, kv_dtype, "cuda")


@pytest.mark.parametrize("group", [64, 128])
def test_heads_that_fit_nowhere_are_refused(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded, "gpu_of", lambda _device: Gpu((8, 6), 99 << 10))
    heads = HeadShape(512, group, BF16, torch.float8_e4m3fn)
    said = r"^.*head size 512 with 128 query heads per KV head.*\(leave out --attention-backend lim\)$"
    with pytest.raises(UnsupportedError, match=said) if group == 128 else nullcontext():
        check_heads(heads, torch.device("cuda"), [AttendConfig()])
