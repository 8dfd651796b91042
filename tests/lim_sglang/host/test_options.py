"""Which launch options are refused, through those that SGLang itself makes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lim_cpu_host import gpu_device
from lim_patches.cpu import support_triton
from lim_sglang.host import compat, finders
from lim_sglang.host.model import model_config
from lim_sglang.host.names import SERVER_ARGS_FIELDS
from lim_sglang.host.refusals import REFUSALS, UnsupportedError, check_supported

from .conftest import CommandLine, ErrorLine, Launch, Prepare


def refusal(server_args: Any, **options: Any) -> str:
    """The refusal's text for these options; ``options`` are read in place of what SGLang resolved."""
    args = compat.effective_args(server_args)

    class View:
        def __getattr__(self, name: str) -> Any:
            return options[name] if name in options else getattr(args, name)

    with pytest.raises(UnsupportedError) as caught:
        check_supported(View(), model_config(server_args))
    return str(caught.value)


NEVER_DECODES = {
    "embedding": (["--is-embedding"], "the model (LlamaForCausalLM) with --is-embedding", "nothing is decoded"),
    "prefill": (["--disaggregation-mode", "prefill"], "--disaggregation-mode prefill", "decodes nothing"),
    "encoder": (["--encoder-only"], "--encoder-only", "decodes nothing"),
}


@pytest.mark.parametrize(("words", "found", "reason"), NEVER_DECODES.values(), ids=NEVER_DECODES)
def test_a_server_that_never_decodes_is_refused(
    prepare: Prepare, error_line: ErrorLine, words: list[str], found: str, reason: str
) -> None:
    line = error_line(prepare, {}, *words)
    assert line.startswith(f"lim-sglang: error: {found} does not work with lim: lim makes decode sparse, and ")
    assert reason in line


def test_a_server_that_only_decodes_is_served(command_line: CommandLine) -> None:
    """By the early judgement; SGLang goes on to ask for a transfer engine."""
    assert command_line({}, "--disaggregation-mode decode") == {}


@pytest.mark.parametrize(
    ("model_dtype", "options", "found"),
    [
        ("float16", {"kv_cache_dtype": "bf16"}, "--kv-cache-dtype bf16 with a float16 model"),
        ("float32", {"kv_cache_dtype": "bf16"}, "--kv-cache-dtype bf16 with a float16 model"),
        ("bfloat16", {"kv_cache_dtype": "bf16", "dtype": "half"}, "--kv-cache-dtype bf16 with a float16 model"),
        ("bfloat16", {"dtype": "float32"}, "--dtype float32"),
    ],
    ids=["bf16", "float32 checkpoint", "asked for", "float32"],
)
def test_a_dtype_that_a_gpu_cannot_attend_in_is_refused(
    launch: Launch, model_dtype: str, options: dict[str, str], found: str
) -> None:
    text = refusal(launch({"torch_dtype": model_dtype}), device="cuda", **options)
    assert text.startswith(f"{found} does not work with lim: ")
    assert "--dtype bfloat16" in text


@pytest.mark.parametrize(
    ("model_dtype", "options"),
    [
        ("float16", {"kv_cache_dtype": "fp8_e4m3"}),
        ("bfloat16", {"kv_cache_dtype": "bfloat16"}),
        ("float16", {"kv_cache_dtype": "bfloat16", "dtype": "bfloat16"}),
        ("float16", {"kv_cache_dtype": "bfloat16", "device": "cpu"}),
    ],
    ids=["fp8", "the model's own", "asked for", "on a CPU"],
)
def test_other_dtypes_are_served(launch: Launch, model_dtype: str, options: dict[str, str]) -> None:
    server_args = launch({"torch_dtype": model_dtype})
    args = compat.effective_args(server_args)
    names = set(SERVER_ARGS_FIELDS)
    view = {name: getattr(args, name) for name in names} | {"device": "cuda"} | options
    check_supported(SimpleNamespace(**view), model_config(server_args))


@pytest.mark.parametrize(
    ("option", "value", "flag"),
    [
        ("speculative_algorithm", "EAGLE", "--speculative-algorithm EAGLE"),
        ("enable_deterministic_inference", True, "--enable-deterministic-inference"),
        ("enable_torch_compile", True, "--enable-torch-compile"),
        ("enable_two_batch_overlap", True, "--enable-two-batch-overlap"),
        ("dcp_size", 2, "--dcp-size 2"),
        ("attn_cp_size", 2, "--attn-cp-size 2"),
        ("dllm_algorithm", "LowConfidence", "--dllm-algorithm LowConfidence"),
        ("enable_hisparse", True, "--enable-hisparse"),
        ("enable_page_major_kv_layout", True, "--enable-page-major-kv-layout"),
        ("kv_cache_dtype", "fp8_e4m3", "--kv-cache-dtype fp8_e4m3"),
        ("device", "xpu", "--device xpu"),
        ("decode_attention_backend", "torch_native", "--decode-attention-backend torch_native"),
    ],
)
def test_options_that_are_refused(launch: Launch, option: str, value: Any, flag: str) -> None:
    text = refusal(launch(), **{option: value})
    assert text.startswith(f"{flag} does not work with lim: ")
    assert "\n" not in text


def test_an_amd_gpu_is_refused_though_sglang_calls_it_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = next(entry for entry in REFUSALS if entry.feature.startswith("devices"))
    on_gpu, model = SimpleNamespace(device="cuda"), object()
    monkeypatch.setattr(torch.version, "hip", None)
    assert entry.found(on_gpu, model) == ""
    monkeypatch.setattr(torch.version, "hip", "6.3.1")
    assert entry.found(on_gpu, model) == "an AMD GPU"
    assert entry.found(SimpleNamespace(device="cpu"), model) == ""


@pytest.mark.parametrize(
    ("option", "value", "off"),
    [("page_size", 64, 1), ("enable_lora", True, None), ("enable_hierarchical_cache", True, False)],
)
def test_what_a_cpu_alone_cannot_do(monkeypatch: pytest.MonkeyPatch, option: str, value: Any, off: Any) -> None:
    monkeypatch.setattr(compat, "pages_need_triton", lambda: True)
    entries = [entry for entry in REFUSALS if entry.feature.endswith(" on a CPU")]
    assert len(entries) == 3
    idle = {"page_size": 1, "enable_lora": None, "enable_hierarchical_cache": False}
    for device, chosen, count in (("cpu", value, 1), ("cpu", off, 0), ("cuda", value, 0), (None, value, 0)):
        args = SimpleNamespace(**(idle | {"device": device, option: chosen}))
        found = [text for entry in entries if (text := entry.found(args, object()))]
        assert len(found) == count, (device, chosen)
        assert all(text.startswith("--" + option.replace("_", "-")) for text in found)


@pytest.mark.skipif(gpu_device() is not None, reason="about SGLang in a process without a GPU")
def test_pages_are_allowed_where_sglang_allocates_them_on_a_cpu(launch: Launch) -> None:
    """Three prompts of 5, 16 and 17 tokens in pages of 16, by SGLang's own allocator."""
    from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator

    new = torch.tensor([5, 16, 17])
    old, before = torch.zeros(3, dtype=torch.int64), torch.full((3,), -1)
    allocator = PagedTokenToKVPoolAllocator(128, 16, torch.float32, "cpu", None, need_sort=False)
    entry = next(entry for entry in REFUSALS if entry.feature.startswith("pages"))
    found = entry.found(SimpleNamespace(device="cpu", page_size=16), object())
    if found:
        with pytest.raises(RuntimeError, match="active drivers"):
            allocator.alloc_extend(old, old, new, new, before, 38)
    else:
        slots = allocator.alloc_extend(old, old, new, new, before, 38)
        starts = [*range(16, 21), *range(32, 48), *range(48, 65)]
        assert slots.tolist() == starts


@pytest.mark.skipif(gpu_device() is not None, reason="there the CPU host is never active")
def test_a_cpu_is_refused_where_sglang_would_launch_triton(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that may use a GPU, where the CPU host is off."""
    server_args = launch()
    assert finders.serves_on_cpu()
    monkeypatch.setattr("sglang.srt.utils.common.support_triton", lambda _backend: True)
    text = refusal(server_args)
    assert text.startswith("--device cpu does not work with lim: a process that may use a GPU")
    assert "CUDA_VISIBLE_DEVICES=" in text


@pytest.mark.parametrize("active", [True, False])
def test_the_cpu_host_answers_for_lim_only_while_it_is_on(monkeypatch: pytest.MonkeyPatch, active: bool) -> None:
    monkeypatch.setattr(support_triton, "is_active", lambda: active)
    answers = [support_triton.without_gpu(lambda _backend: True, backend) for backend in ("lim", "triton")]
    assert answers == [not active, True]


@pytest.mark.parametrize(("value", "found"), [(True, "--enable-pdmux"), (False, ""), (None, "")])
def test_pd_multiplexing(value: bool | None, found: str) -> None:
    entry = next(entry for entry in REFUSALS if entry.feature == "PD multiplexing")
    args = SimpleNamespace() if value is None else SimpleNamespace(enable_pdmux=value)  # 0.5.23 has no such field
    assert entry.found(args, object()) == found
