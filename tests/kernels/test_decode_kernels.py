"""Split-KV decode attention against the definition: poisoned scratch, ragged requests, strided caches."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import triton
import triton.language as tl

from lim_kernels.attend import launch
from lim_kernels.attend.fp8 import as_dtype
from lim_kernels.attend.launch import AttendConfig, AttendWorkspace, KVCache, Requests, attend
from lim_kernels.gpu import Gpu

from .cases import DEVICE, ON_GPU, SMALL, Case

CASES = {
    "ragged": Case([1, 15, 16, 17, 0, 200]),
    "one split": Case([40, 3], config=replace(SMALL.attend, min_splits=1, max_splits=1)),
    "multi-query": Case([63, 40], heads=20, kv_heads=1),
    "multi-head": Case([63, 40], heads=3, kv_heads=3),
    "head dim 96": Case([63, 40], head_dim=96),
    "soft cap": Case([63, 40], soft_cap=2.0),
    "fp8": Case([63, 40], k_dtype=torch.float8_e4m3fn, value_scale=0.5),  # bytes in the interpreter, a type on a GPU
    "fp8 under fp16": Case([1, 15, 16, 200], dtype=torch.float16, k_dtype=torch.float8_e4m3fn),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_attention_is_the_references(case: Case) -> None:
    case.check(case.run(), case.expected())


def decode_kernel(codes, out, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.arange(0, SIZE)
    tl.store(out + place, as_dtype(tl.load(codes + place), out.dtype.element_ty))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, *[torch.bfloat16] * ON_GPU], ids=str)
def test_every_byte_is_decoded(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly: subnormals, both zeros and both NaNs as well."""
    monkeypatch.setenv("TRITON_INTERPRET", "0" if ON_GPU else "1")
    codes = torch.arange(256, dtype=torch.uint8, device=DEVICE)
    out = torch.empty(256, dtype=dtype, device=DEVICE)
    triton.jit(decode_kernel)[(1,)](codes, out, SIZE=256)
    expected = codes.view(torch.float8_e4m3fn).to(dtype)
    assert expected.isnan().sum() == 2
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(out.signbit()[~expected.isnan()], expected.signbit()[~expected.isnan()])


@pytest.mark.parametrize("capability", [(8, 6), (8, 9)], ids=str)
def test_gpus_without_fp8_are_given_bytes(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """From compute capability 8.9 on the kernel gets the type itself; other caches are never viewed as bytes."""
    given = []
    names = "q", "k_cache", "v_cache"

    class Recorder:
        def __getitem__(self, _grid: object) -> Callable[..., None]:
            return lambda **given_to: given.append([given_to[name].dtype for name in names if name in given_to])

    monkeypatch.setattr(launch, "gpu_of", lambda _device: Gpu(capability, 99 << 10))
    for name in ("attend_kernel", "merge_kernel"):
        monkeypatch.setattr(launch, name, Recorder())
    for k_dtype in (torch.float8_e4m3fn, None):
        Case([20, 30], dtype=torch.float16, k_dtype=k_dtype).run()
    fp8 = torch.float8_e4m3fn if capability >= (8, 9) else torch.uint8
    assert given == [[torch.float16, fp8, fp8], [], [torch.float16] * 3, []]


@pytest.mark.gpu
def test_bytes_give_what_the_type_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that has the type, used as if it had none."""
    case = Case([2048, 1, 4097], 32, 8, 128, k_dtype=torch.float8_e4m3fn)
    by_type = case.run()
    monkeypatch.setattr(launch, "gpu_of", lambda _device: Gpu((8, 6), 99 << 10))
    by_bytes = case.run()
    case.check(by_bytes, case.expected())
    case.check(by_bytes, by_type.float())


@pytest.mark.gpu
@pytest.mark.parametrize("k_dtype", [None, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("config", [AttendConfig(), AttendConfig(32, 4, 5, 264, 1)], ids=["select", "sparse"])
def test_serving_shapes(k_dtype: torch.dtype | None, config: AttendConfig) -> None:
    case = Case([32_768, 2048, 1, 4097], 32, 8, 128, k_dtype=k_dtype, config=config)
    case.check(case.run(), case.expected())


zeros = partial(torch.zeros, device=DEVICE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": zeros(2, 5, 64)}, "a multiple of Hk"),
        ({"q": zeros(2, 6, 64, dtype=torch.float64)}, "q of torch.float64"),
        ({"out": zeros(2, 6, 32)}, "expected [2, 6, 64], as q"),
        ({"cache": {"values": zeros(75, 2, 64, dtype=torch.float64)}}, "v_cache [75, 2, 64] of torch.float64"),
        ({"cache": {"keys": zeros(75, 2, 128)[:, :, ::2]}}, "contiguous last dimension"),
        ({"requests": {"kv_indptr": zeros(3, dtype=torch.int64)}}, "contiguous torch.int32"),
        ({"workspace": AttendWorkspace(zeros(3, 6, 64), zeros(3, 6))}, "with splits at least that"),
    ],
    ids=["heads", "dtype", "out", "values", "stride", "index", "workspace"],
)
def test_bad_arguments_get_one_line(change: dict[str, object], message: str) -> None:
    case = Case([20, 50], dtype=torch.float32)
    arguments: dict[str, object] = {
        "q": case.q,
        "cache": case.cache,
        "requests": case.requests,
        "out": torch.zeros_like(case.q),
        "workspace": case.workspace(),
    }
    for name, value in change.items():
        old = arguments[name]
        arguments[name] = old._replace(**value) if isinstance(old, KVCache | Requests) else value  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        attend(**arguments, config=case.config)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
