"""Split-KV decode attention against the definition: poisoned scratch, ragged requests, strided caches."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
import triton
import triton.language as tl

from lim_kernels.attend import launch
from lim_kernels.attend.fp8 import as_dtype
from lim_kernels.attend.launch import AttendConfig, AttendWorkspace, KVCache, Requests, attend
from lim_kernels.attend.reference import decode_attention
from lim_kernels.gpu import Gpu

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
SMALL = AttendConfig() if ON_GPU else AttendConfig(block_n=16, programs=40, min_splits=2, max_splits=8)


@dataclass
class Case:
    """One layer of one decode step, or of a verification of ``q_len`` tokens per request, the last of its length."""

    lengths: list[int]
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 64
    dtype: torch.dtype = torch.bfloat16 if ON_GPU else torch.float32
    k_dtype: torch.dtype | None = None
    soft_cap: float = 0.0
    value_scale: float = 1.0
    config: AttendConfig = field(default_factory=lambda: SMALL)
    q_len: int = 1

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(sum(self.lengths))
        slots = sum(self.lengths) + 3
        pool = torch.randn(slots, self.kv_heads, 2 * self.head_dim, generator=generator)
        k_dtype = self.k_dtype or self.dtype
        self.keys, self.values = pool.to(DEVICE, k_dtype).split(self.head_dim, dim=2)
        q = torch.randn(len(self.lengths) * self.q_len, self.heads, self.head_dim, generator=generator)
        self.q = (2 * q).to(DEVICE, self.dtype)
        slots_in_order = torch.randperm(slots, generator=generator)[: sum(self.lengths)]
        indptr = torch.tensor([0, *self.lengths]).cumsum(0)
        index = indptr.int().to(DEVICE), slots_in_order.int().to(DEVICE)
        self.requests = Requests(*index, 0, len(self.lengths), self.q_len)
        self.cache = KVCache(self.keys, self.values, self.head_dim**-0.5, self.value_scale, self.soft_cap)

    def workspace(self) -> AttendWorkspace:
        shape = len(self.lengths), self.heads, self.kv_heads, self.head_dim
        made = AttendWorkspace.allocate(*shape, DEVICE, self.config, self.q_len)
        made.partial.fill_(float("nan"))
        made.lse.fill_(float("nan"))
        return made

    def run(self, requests: Requests | None = None) -> torch.Tensor:
        out = torch.full_like(self.q, float("nan"))
        attend(self.q, self.cache, requests or self.requests, out, self.workspace(), self.config)
        return out

    def expected(self) -> torch.Tensor:
        caches = self.keys.to(self.dtype), self.values.to(self.dtype)
        index = self.requests.kv_indptr, self.requests.kv_indices
        return decode_attention(self.q, *caches, *index, self.cache.sm_scale, self.soft_cap) * self.value_scale

    def check(self, out: torch.Tensor, expected: torch.Tensor) -> None:
        """float32 to rounding, else to two units of the dtype, which the rounded weights cost."""
        tolerance = 2e-6 if self.dtype == torch.float32 else 2 * torch.finfo(self.dtype).eps
        largest = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(out.float(), expected, rtol=0, atol=tolerance * largest)


CASES = {
    "ragged": Case([1, 15, 16, 17, 0, 200]),
    "one split": Case([40, 3], config=replace(SMALL, min_splits=1, max_splits=1)),
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


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0)], ids=str)
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


def test_some_requests_of_a_batch() -> None:
    """Requests 1 and 2 only: nothing is written for the others."""
    case = Case([20, 30, 40, 50])
    out = case.run(case.requests._replace(first=1, size=2))
    case.check(out[1:3], case.expected()[1:3])
    assert bool(out[[0, 3]].isnan().all())


def test_the_soft_cap_matters() -> None:
    """The case above would not notice a cap that no logit reaches."""
    capped, plain = Case([63, 40], soft_cap=2.0).expected(), Case([63, 40]).expected()
    assert float((capped - plain).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 5, 64)}, "a multiple of Hk"),
        ({"q": torch.zeros(2, 6, 64, dtype=torch.float64)}, "q of torch.float64"),
        ({"out": torch.zeros(2, 6, 32)}, "expected [2, 6, 64], as q"),
        ({"cache": {"values": torch.zeros(73, 2, 64, dtype=torch.float64)}}, "v_cache [73, 2, 64] of torch.float64"),
        ({"cache": {"keys": torch.zeros(73, 2, 128, device=DEVICE)[:, :, ::2]}}, "contiguous last dimension"),
        ({"requests": {"kv_indptr": torch.zeros(3, dtype=torch.int64)}}, "contiguous torch.int32"),
        ({"workspace": AttendWorkspace(torch.zeros(3, 6, 64), torch.zeros(3, 6))}, "with splits at least that"),
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
    moved = {name: to_device(value) for name, value in arguments.items()}
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        attend(**moved, config=case.config)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def to_device(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.to(DEVICE)
    if isinstance(value, KVCache | Requests):
        return type(value)(*(to_device(part) for part in value))
    if isinstance(value, AttendWorkspace):
        return AttendWorkspace(value.partial.to(DEVICE), value.lse.to(DEVICE))
    return value
