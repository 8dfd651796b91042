"""Every entry of the table of refusals, through SGLang's own parser, and what looks alike but is served."""

from __future__ import annotations

import ast
import inspect
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lim_cpu_host import gpu_device
from lim_patches.cpu import support_triton
from lim_sglang.config import ENV_DRAFTS
from lim_sglang.host import compat
from lim_sglang.host.finders import LOSSLESS
from lim_sglang.host.launch import check_launch, resolve
from lim_sglang.host.model import attending_layers, model_config, windowed_layers
from lim_sglang.host.refusals import REFUSALS, Refusal
from lim_sglang.layer_plan import LayerRole

from .conftest import CommandLine, ErrorLine, Launch, Prepare

Model = dict[str, Any]
HEADS: Model = {"hidden_size": 96, "num_attention_heads": 12, "num_key_value_heads": 4, "num_hidden_layers": 6}
PHI: Model = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "pad_token_id": 0}
QWEN: Model = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
GEMMA: Model = {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "head_dim": 16}
OLMO: Model = {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo3", "sliding_window": 1024, "pad_token_id": 0}
GEMMA3: Model = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "sliding_window": 512,
    "head_dim": 16,
}
SOME_HYBRID: Model = {"architectures": ["SomeHybrid"], "is_hybrid_swa": True, "sliding_window": 512}
QWEN3_NEXT: Model = {
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "num_hidden_layers": 16,
    "full_attention_interval": 4,
    "pad_token_id": None,
}
QWEN4_EXP: Model = {
    "architectures": ["Qwen4ExpForConditionalGeneration"],
    "model_type": "qwen4_exp",
    "text_config": HEADS
    | {
        "model_type": "qwen4_exp_text",
        "head_dim": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 64,
        "indexer_budget": 2048,
        "indexer_compress_ratio": 4,
    },
}
KIMI_LINEAR: Model = {
    "architectures": ["KimiLinearForCausalLM"],
    "model_type": "kimi_linear",
    "linear_attn_config": {
        "kda_layers": [1, 2, 3, 5],
        "full_attn_layers": [4, 6],
        "num_heads": 4,
        "head_dim": 16,
        "short_conv_kernel_size": 4,
    },
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
LIGHTNING: Model = {
    "architectures": ["BailingMoeV2_5ForCausalLM"],
    "model_type": "bailing_hybrid",
    "layer_group_size": 3,
}


def text_model(architecture: str, kind: str, layers: int) -> Model:
    """An image-text model, of whose layers every fourth attends."""
    text = HEADS | {"model_type": f"{kind}_text", "num_hidden_layers": layers, "full_attention_interval": 4}
    return {"architectures": [architecture], "model_type": kind, "text_config": text}


LFM2: Model = {
    "architectures": ["Lfm2ForCausalLM"],
    "model_type": "lfm2",
    "layer_types": ["conv", "conv", "full_attention"] * 2,
}
JET: Model = {"architectures": ["JetNemotronForCausalLM"], "model_type": "jet_nemotron", "layer_types": ["jet"] * 6}

WITHOUT_DECODE = "servers that only prefill or encode"
WITHOUT_GENERATION = "embedding, reward and classification models"
KV_DTYPES = "KV cache dtypes other than auto, bfloat16 and, on a GPU, fp8_e4m3"
MIXED_DTYPES = "a bfloat16 KV cache under a model of another dtype, on a GPU"
WINDOWS = "models with a sliding window in every layer"
CHUNKS = "chunked attention (Llama 4)"
LOSSLESS_FLAG = "--speculative-algorithm LIM"
LOSSLESS_WINDOWS = "the lossless mode of models with sliding windows"
OWN_ATTENTION = "models with an attention of their own"
OTHER_HYBRIDS = "Mamba, KDA, lightning and short-convolution hybrids"
GDN_ON_BLACKWELL = "hybrids with gated delta nets on a GPU of the Blackwell generation"
LOSSLESS_GDN = "the lossless mode of hybrids with gated delta nets"
UNEVEN = "tensor parallelism that does not share the heads evenly"
OTHER_BACKEND = "another attention backend"
WIDTH = "widths of a verification below 2 and above 16"
OTHER_OPTIONS = "options of other speculative algorithms"


def case(feature: str, flags: str = "", found: str = "", **model: Any) -> Any:
    """What is named as ``found`` is the flags or, where the model has an architecture of its own, that."""
    named = f"the model ({model['architectures'][0]})" if "architectures" in model else flags
    return pytest.param(feature, flags, found or named, model, id=f"{feature}, {found or named}")


CASES = [
    case("lim for prefill only", "--decode-attention-backend torch_native"),
    case(WITHOUT_DECODE, "--disaggregation-mode prefill"),
    case(WITHOUT_DECODE, "--encoder-only"),
    case(WITHOUT_GENERATION, "--is-embedding", "the model (LlamaForCausalLM) with --is-embedding"),
    case(WITHOUT_GENERATION, architectures=["Qwen2ForRewardModel"], model_type="qwen2"),
    case("devices other than NVIDIA GPUs and CPUs", "--device xpu"),
    case("speculative decoding other than LIM", "--speculative-algorithm EAGLE"),
    case("MLA and state-space models", architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2"),
    case("attention sinks as weights (gpt-oss)", architectures=["GptOssForCausalLM"], model_type="gpt_oss"),
    case(WINDOWS, **SOME_HYBRID, hybrid_layer_pattern=[1] * 6),
    case(WINDOWS, "--context-length 1025", **GEMMA, sliding_window=1024, layer_types=["sliding_attention"] * 6),
    case(WINDOWS, **OLMO, layer_types=["sliding_attention"] * 6),
    case(CHUNKS, **SOME_HYBRID, hybrid_layer_pattern=[1, 0] * 3, attention_chunk_size=64),
    case(LOSSLESS_WINDOWS, LOSSLESS_FLAG, f"{LOSSLESS_FLAG} with the model (Gemma3ForCausalLM)", **GEMMA3),
    case("MLA and state-space models", **KIMI_LINEAR),
    case("MLA and state-space models", **LIGHTNING),
    case(OTHER_HYBRIDS, architectures=["FalconH1ForCausalLM"], model_type="falcon_h1"),
    case(
        OTHER_HYBRIDS, architectures=["NemotronHForCausalLM"], model_type="nemotron_h", hybrid_override_pattern="M*" * 3
    ),
    case(OTHER_HYBRIDS, **LFM2),
    case(OTHER_HYBRIDS, **JET),
    case(
        LOSSLESS_GDN,
        f"--speculative-algorithm {LOSSLESS}",
        f"--speculative-algorithm {LOSSLESS} with the model (Qwen3NextForCausalLM)",
        **QWEN3_NEXT,
    ),
    case("models whose layers attend several times", architectures=["IQuestLoopCoderForCausalLM"], loop_num=2),
    case(
        OWN_ATTENTION,
        architectures=["MiniMaxM3SparseForCausalLM"],
        sparse_attention_config={"sparse_attention_freq": [0, 1] * 3},
    ),
    case(OWN_ATTENTION, **QWEN, dual_chunk_attention_config={"chunk_size": 1024, "local_size": 128}),
    case(OWN_ATTENTION, architectures=["HrmTextForCausalLM"]),
    case("encoder-decoder models", architectures=["MllamaForConditionalGeneration"], model_type="mllama"),
    case(KV_DTYPES, "--kv-cache-dtype fp8_e4m3"),
    case("float32 models on a GPU", "--device cuda --dtype float32", "--dtype float32"),
    case(
        MIXED_DTYPES,
        "--device cuda --kv-cache-dtype bf16 --dtype half",
        "--kv-cache-dtype bf16 with a float16 model",
    ),
    case(
        MIXED_DTYPES,
        "--device cuda --kv-cache-dtype bf16",
        "--kv-cache-dtype bf16 with a float16 model",
        torch_dtype="float32",
    ),
    case("deterministic inference", "--enable-deterministic-inference"),
    case("torch.compile", "--enable-torch-compile"),
    case("two-batch overlap", "--enable-two-batch-overlap"),
    case("decode context parallelism", "--dcp-size 2"),
    case("attention context parallelism", "--attn-cp-size 2"),
    case(
        UNEVEN,
        "--device cuda --tp 6",
        "--tp-size 6 (12 query and 4 KV heads can be shared by 1, 2, 4, 12 ranks, not by 6)",
    ),
    case(
        UNEVEN,
        "--device cuda --tp 16 --dp 2 --enable-dp-attention",
        "--tp-size 16 in 2 attention groups (12 query and 4 KV heads can be shared by 1, 2, 4, 12 ranks, not by 8)",
    ),
    case(UNEVEN, "--tp 12", "--tp-size 12 (12 query and 4 KV heads can be shared by 1, 2, 4 ranks, not by 12)"),
    case("diffusion LLMs", "--dllm-algorithm LowConfidence"),
    case("HiSparse", "--enable-hisparse"),
    case("page-major KV layout", "--enable-page-major-kv-layout"),
    case("LoRA on a CPU", "--enable-lora"),
    case("hierarchical cache on a CPU", "--enable-hierarchical-cache"),
    case(OTHER_BACKEND, "--attention-backend torch_native", "the attention backend torch_native"),
    case(OTHER_BACKEND, "--prefill-attention-backend torch_native", "the attention backend torch_native"),
    case(WIDTH, "--speculative-num-draft-tokens 1"),
    case(WIDTH, "--speculative-num-draft-tokens 17"),
    case(
        "widths above 8 with pages of one token",
        "--speculative-num-draft-tokens 9",
        "--speculative-num-draft-tokens 9 with --page-size 1",
    ),
    case("another number of draft steps", "--speculative-num-steps 3"),
    case(OTHER_OPTIONS, "--speculative-eagle-topk 4"),
    case(OTHER_OPTIONS, "--speculative-draft-model-path x"),
    case(OTHER_OPTIONS, "--speculative-accept-threshold-single 0.5"),
    case("pipeline parallelism", "--pp-size 2"),
    case("DP attention", "--tp-size 2 --dp-size 2 --enable-dp-attention", "DP attention"),
    case("LoRA", "--enable-lora"),
    case("mixed prefill and decode", "--enable-mixed-chunk"),
    case("hidden states in answers", "--enable-return-hidden-states"),
    case("hierarchical cache", "--enable-hierarchical-cache"),
    case("disaggregated prefill", "--disaggregation-mode decode"),
]
APART = {  # found by more than a command line
    f"values of {ENV_DRAFTS} other than auto and always",
    "a FlashInfer older than the one SGLang asks for, or none, on a GPU",  # tools/test_doctor.py
    "PD multiplexing",
    GDN_ON_BLACKWELL,
    "a CPU without the CPU host",
    "pages of more than one token on a CPU",
}


def refusal_of(feature: str) -> Refusal:
    return next(refusal for refusal in REFUSALS if refusal.feature == feature)


def told(feature: str, found: str) -> str:
    refusal = refusal_of(feature)
    return f"lim-sglang: error: {found} does not work with lim: {refusal.reason}; {refusal.way_out}"


def test_every_refusal_has_a_case() -> None:
    assert {refusal.feature for refusal in REFUSALS} == {case.values[0] for case in CASES} | APART


@pytest.mark.parametrize(("feature", "flags", "found", "model"), CASES)
def test_refused_in_one_line(
    prepare: Prepare, error_line: ErrorLine, feature: str, flags: str, found: str, model: Model
) -> None:
    """Before SGLang's own assertions about the same options and models."""
    mode = f"--speculative-algorithm {LOSSLESS}" if refusal_of(feature).mode == LOSSLESS else ""
    assert error_line(prepare, HEADS | model, *shlex.split(f"{mode} {flags}")) == told(feature, found)


def test_a_drafts_variable_that_says_nothing(
    prepare: Prepare, error_line: ErrorLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_DRAFTS, "never")
    line = error_line(prepare, {}, "--speculative-algorithm", LOSSLESS)
    assert line == told(f"values of {ENV_DRAFTS} other than auto and always", f"{ENV_DRAFTS}=never")


@pytest.mark.parametrize(
    ("flags", "model"),
    [
        ("--device cuda --disaggregation-mode decode", {}),
        ("--device cuda --kv-cache-dtype fp8_e4m3", {"torch_dtype": "float16"}),
        ("--device cuda --kv-cache-dtype bfloat16", {}),
        ("--device cuda --kv-cache-dtype bfloat16 --dtype bfloat16", {"torch_dtype": "float16"}),
        ("--device cpu --kv-cache-dtype bfloat16", {"torch_dtype": "float16"}),
        ("--device cuda --tp 4", {}),
        ("--device cuda --tp 12", {}),  # KV heads on several ranks
        ("--device cuda --tp 8 --dp 4 --enable-dp-attention", {}),
        ("--device cpu --tp 2", {}),
        ("--device cuda --enable-lora", {}),
        ("--device cuda --enable-hierarchical-cache --page-size 64", {}),
        ("--device cpu --speculative-algorithm lim --tp-size 2", {}),
        ("--device cpu --speculative-algorithm LIM --speculative-num-draft-tokens 2", {}),
        ("--device cpu --speculative-algorithm LIM --speculative-num-draft-tokens 8", {}),
        ("--device cuda --speculative-algorithm LIM --speculative-num-draft-tokens 16 --page-size 16", {}),
    ],
    ids=str,
)
def test_served(command_line: CommandLine, flags: str, model: Model) -> None:
    assert command_line(HEADS | model, flags) == {}


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        (PHI | {"sliding_window": 262144, "max_position_embeddings": 131072}, []),
        (PHI | {"sliding_window": 1024}, []),  # a class that ignores it
        (QWEN | {"use_sliding_window": True, "sliding_window": 1024, "max_window_layers": 3}, []),  # likewise
        (GEMMA | {"sliding_window": 4096}, []),
        (GEMMA | {"sliding_window": 1024}, ["--context-length", "1024"]),
        (OLMO | {"layer_types": ["full_attention"] * 6}, []),
    ],
    ids=["phi-4-mini", "ignored", "in upper layers, ignored", "the context", "the context asked for", "in no layer"],
)
def test_windows_that_drop_nothing_are_served(prepare: Prepare, model: Model, flags: list[str]) -> None:
    server_args = prepare(HEADS | model, *flags)
    check_launch(server_args)
    assert model_config(server_args).sliding_window_size == model["sliding_window"], "else it shows nothing"


@pytest.mark.parametrize(
    ("model", "windows"),
    [
        (GEMMA3 | {"layer_types": ["sliding_attention", "full_attention"] * 6}, range(0, 12, 2)),
        (GEMMA | {"sliding_window": 1024}, range(0, 12, 2)),
        (OLMO | {"layer_types": [*["sliding_attention"] * 2, "full_attention"] * 4}, (0, 1, 3, 4, 6, 7, 9, 10)),
        (SOME_HYBRID | {"hybrid_layer_pattern": [1, 0, 0] * 4}, (0, 3, 6, 9)),
    ],
    ids=["gemma3", "gemma2", "olmo3", "by SGLang's pattern"],
)
def test_layers_with_a_window_are_left_out_of_the_plan(prepare: Prepare, model: Model, windows: Sequence[int]) -> None:
    server_args = prepare(HEADS | model | {"num_hidden_layers": 12})
    check_launch(server_args)
    found = model_config(server_args)
    full = [layer for layer in range(12) if layer not in windows]
    assert (windowed_layers(found), attending_layers(found)) == ([*windows], full)
    _, plan = resolve(server_args, found)
    assert set(plan.select_layers) <= set(full)
    assert sum(map(plan.count, LayerRole)) == len(full)


HYBRIDS = [
    (QWEN3_NEXT, "", (7, 11)),
    (text_model("Qwen3_5ForConditionalGeneration", "qwen3_5", 64), "", (7, 43)),  # as Qwen3.5-27B
    (text_model("Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe", 40), "", (7, 27)),  # as Qwen3.5-35B-A3B
    (text_model("Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe", 40), "--lim-select-layers 3,15,27", (3, 15, 27)),
]
ON_A_CPU = ["--disable-overlap-schedule"]  # SGLang 0.5.16 asserts a GPU for the radix cache that goes with overlap


@pytest.mark.parametrize(("model", "flags", "selects"), HYBRIDS)
def test_hybrids_with_gated_delta_nets_are_served(
    prepare: Prepare, model: Model, flags: str, selects: tuple[int, ...]
) -> None:
    """By prefill and decode and by decode alone; every fourth layer attends, and no other has a role that counts."""
    server_args = prepare(HEADS | model, *ON_A_CPU, *shlex.split(flags))
    check_launch(server_args)
    _, plan = resolve(server_args, model_config(server_args))
    depth = len(plan.roles)
    assert plan.attending == frozenset(range(3, depth, 4))
    assert plan.select_layers == selects
    assert sum(plan.count(role) for role in LayerRole) == depth // 4
    assert plan.count(LayerRole.DENSE) == selects[0] // 4


def test_a_layer_that_does_not_attend_cannot_be_chosen(prepare: Prepare, error_line: ErrorLine) -> None:
    assert error_line(prepare, HEADS | QWEN3_NEXT, "--lim-select-layers", "4") == (
        "lim-sglang: error: select_layers=[4] is not allowed: layer 4 of this model does not attend to "
        "all tokens, so it cannot select, expected layers among 3, 7, 11, 15; for example --lim-select-layers 3"
    )


@pytest.mark.parametrize(("capability", "found"), [((9, 0), False), ((10, 0), True), ((12, 0), True)])
def test_gated_delta_nets_on_blackwell(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], found: bool
) -> None:
    model = model_config(prepare(HEADS | QWEN3_NEXT, *ON_A_CPU))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    named = "the model (Qwen3NextForCausalLM)" if found else ""
    refused = refusal_of(GDN_ON_BLACKWELL).found
    assert [refused(SimpleNamespace(device=device), model) for device in ("cuda", "cpu")] == [named, ""]


def test_qwens_that_select_tokens_themselves(prepare: Prepare, error_line: ErrorLine) -> None:
    """SGLang 0.5.23 would replace lim without a word; 0.5.16 does not know the model."""
    line = error_line(prepare, HEADS | QWEN4_EXP)
    if find_spec("sglang.srt.configs.qwen4_exp"):
        assert line == told(OWN_ATTENTION, "the model (Qwen4ExpForConditionalGeneration)")
    else:
        assert "holds no usable model config" in line


def test_other_backends_are_none_of_our_business(launch: Launch) -> None:
    check_launch(launch(GEMMA3, attention_backend="torch_native"))


def test_sglang_wraps_the_backend_of_no_model_that_is_not_refused() -> None:
    """Every branch of SGLang's wrapper hangs on something that a refusal asks as well."""
    from sglang.srt.layers.attention import attention_registry

    wrapper = ast.parse(inspect.getsource(attention_registry.attn_backend_wrapper)).body[0]
    assert isinstance(wrapper, ast.FunctionDef)
    branches = [ast.unparse(node.test) for node in wrapper.body if isinstance(node, ast.If)]
    known = {
        "is_minimax_sparse(runner.model_config.hf_config)",
        "isinstance(runner.model_config.hf_text_config, Dots3Config)",
        "(cfg := mambaish_config(runner.model_config))",
    }
    assert len(branches) >= 2
    assert set(branches) <= known


def test_an_amd_gpu_is_refused_though_sglang_calls_it_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = refusal_of("devices other than NVIDIA GPUs and CPUs")
    monkeypatch.setattr(torch.version, "hip", "6.3.1")
    found = [entry.found(SimpleNamespace(device=device), object()) for device in ("cuda", "cpu")]
    assert found == ["an AMD GPU", ""]


@pytest.mark.parametrize("by_triton", [True, False])
def test_pages_are_refused_on_a_cpu_where_triton_allocates_them(
    monkeypatch: pytest.MonkeyPatch, by_triton: bool
) -> None:
    monkeypatch.setattr(compat, "pages_need_triton", lambda: by_triton)
    entry = refusal_of("pages of more than one token on a CPU")
    options = [("cpu", 64), ("cpu", 1), ("cuda", 64), (None, 64)]
    found = [entry.found(SimpleNamespace(device=device, page_size=size), object()) for device, size in options]
    assert found == ["--page-size 64" if by_triton else "", "", "", ""]


@pytest.mark.skipif(gpu_device() is not None, reason="about SGLang in a process without a GPU")
def test_pages_are_allowed_where_sglang_allocates_them_on_a_cpu() -> None:
    """Three prompts of 5, 16 and 17 tokens in pages of 16, by SGLang's own allocator."""
    from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator

    new = torch.tensor([5, 16, 17])
    old, before = torch.zeros(3, dtype=torch.int64), torch.full((3,), -1)
    allocator = PagedTokenToKVPoolAllocator(128, 16, torch.float32, "cpu", None, need_sort=False)
    if compat.pages_need_triton():
        with pytest.raises(RuntimeError, match="active drivers"):
            allocator.alloc_extend(old, old, new, new, before, 38)
    else:
        slots = allocator.alloc_extend(old, old, new, new, before, 38)
        assert slots.tolist() == [*range(16, 21), *range(32, 48), *range(48, 65)]


@pytest.mark.skipif(gpu_device() is not None, reason="there the CPU host is never active")
def test_a_cpu_is_refused_where_sglang_would_launch_triton(
    prepare: Prepare, error_line: ErrorLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a process that may use a GPU, where the CPU host is off."""
    monkeypatch.setattr("sglang.srt.utils.common.support_triton", lambda _backend: True)
    assert error_line(prepare, {}) == told("a CPU without the CPU host", "--device cpu")


@pytest.mark.parametrize("active", [True, False])
def test_the_cpu_host_answers_for_lim_only_while_it_is_on(monkeypatch: pytest.MonkeyPatch, active: bool) -> None:
    monkeypatch.setattr(support_triton, "is_active", lambda: active)
    answers = [support_triton.without_gpu(lambda _backend: True, backend) for backend in ("lim", "triton")]
    assert answers == [not active, True]


def test_pd_multiplexing() -> None:
    options = [{"enable_pdmux": True}, {"enable_pdmux": False}, {}]  # 0.5.23 has no such field
    found = [refusal_of("PD multiplexing").found(SimpleNamespace(**given), object()) for given in options]
    assert found == ["--enable-pdmux", "", ""]
