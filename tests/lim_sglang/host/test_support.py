"""Refusals, through the launch options and model configs that SGLang itself makes."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lim_patches import support_triton
from lim_patches.cpu_host import gpu_device
from lim_sglang.host import compat
from lim_sglang.host.launch import check_command_line, check_launch, resolve
from lim_sglang.host.names import SERVER_ARGS_FIELDS
from lim_sglang.host.support import REFUSALS, UnsupportedError, check_supported
from lim_sglang.layer_plan import LayerRole
from lim_sglang.servers.process import free_port

from .tiny_llama import LLAMA

DEEPSEEK = {
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "q_lora_rank": None,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
MODELS = {
    "hybrid-window": (
        "sliding-window and hybrid-window models",
        {
            "architectures": ["SomeHybrid"],
            "is_hybrid_swa": True,
            "hybrid_layer_pattern": [1, 0] * 6,
            "sliding_window": 1024,
        },
    ),
    "gemma3": (
        "sliding-window and hybrid-window models",
        {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "sliding_window": 512, "head_dim": 16},
    ),
    "deepseek": (
        "MLA and state-space models",
        {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2"} | DEEPSEEK,
    ),
    "qwen3-next": (
        "linear-attention and Mamba hybrids",
        {"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "num_experts": 4},
    ),
    "falcon-h1": (
        "linear-attention and Mamba hybrids",
        {"architectures": ["FalconH1ForCausalLM"], "model_type": "falcon_h1"},
    ),
    "gpt-oss": (
        "attention sinks as weights (gpt-oss)",
        {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "num_local_experts": 4, "head_dim": 16},
    ),
    "loop": (
        "models whose layers attend several times",
        {"architectures": ["IQuestLoopCoderForCausalLM"], "loop_num": 2},
    ),
    "minimax-sparse": (
        "models with an attention of their own",
        {
            "architectures": ["MiniMaxM3SparseForCausalLM"],
            "sparse_attention_config": {"sparse_attention_freq": [0, 1] * 6},
        },
    ),
    "dual-chunk": (
        "models with an attention of their own",
        {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "dual_chunk_attention_config": {"chunk_size": 1024, "local_size": 128},
        },
    ),
    "hrm-text": (
        "models with an attention of their own",
        {"architectures": ["HrmTextForCausalLM"]},
    ),
    "mllama": (
        "encoder-decoder models",
        {
            "architectures": ["MllamaForConditionalGeneration"],
            "model_type": "mllama",
            "text_config": {},
            "vision_config": {},
        },
    ),
    "reward": (
        "embedding, reward and classification models",
        {"architectures": ["Qwen2ForRewardModel"], "model_type": "qwen2"},
    ),
    "classifier": (
        "embedding, reward and classification models",
        {"architectures": ["LlamaForSequenceClassification"]},
    ),
    "qwen3 classifier": (
        "embedding, reward and classification models",
        {"architectures": ["Qwen3ForSequenceClassification"], "model_type": "qwen3"},
    ),
    "embedding": ("embedding, reward and classification models", {"architectures": ["LlamaEmbeddingModel"]}),
    "encoder": (
        "embedding, reward and classification models",
        {"architectures": ["BertModel"], "model_type": "bert"},
    ),
}

Launch = Callable[..., Any]


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.plugins import load_plugins

    monkeypatch.delenv("SGLANG_LIM_CONFIG", raising=False)
    load_plugins()
    if gpu_device() is not None:  # launches here are for a CPU, also where there is a GPU
        monkeypatch.setattr(compat, "serves_on_cpu", lambda: True)


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Makes SGLang's own launch options for a small model described by a config file alone."""

    def make(model: dict[str, Any] | None = None, **options: Any) -> Any:
        from sglang.srt.server_args import ServerArgs

        (tmp_path / "config.json").write_text(json.dumps(LLAMA | (model or {})))
        chosen = {"attention_backend": "lim", "device": "cpu", "load_format": "dummy"} | options
        server_args = ServerArgs(model_path=str(tmp_path), skip_tokenizer_init=True, **chosen)
        if hasattr(server_args, "resolve_once"):
            server_args.resolve_once()
        return server_args

    return make


def refusal(server_args: Any, **options: Any) -> str:
    """The refusal's text for these options; ``options`` are read in place of what SGLang resolved."""
    args = compat.effective_args(server_args)

    class View:
        def __getattr__(self, name: str) -> Any:
            return options[name] if name in options else getattr(args, name)

    with pytest.raises(UnsupportedError) as caught:
        check_supported(View(), compat.model_config(server_args))
    return str(caught.value)


def test_a_plain_model_is_served(launch: Launch) -> None:
    check_launch(launch())


@pytest.mark.parametrize("name", MODELS)
def test_models_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Through SGLang's own parser, before its assertions about the same models."""
    from sglang.srt.server_args import prepare_server_args

    feature, model = MODELS[name]
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | model))
    with pytest.raises(SystemExit) as caught:
        prepare_server_args(["--model-path", str(tmp_path), "--attention-backend", "lim", "--load-format", "dummy"])
    assert caught.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    expected = next(r for r in REFUSALS if r.feature == feature)
    assert line.startswith(f"lim-sglang: error: the model ({model['architectures'][0]}) does not work with lim: ")
    assert expected.reason in line
    assert line.endswith(expected.way_out)


NEVER_DECODES = {
    "embedding": (["--is-embedding"], "the model (LlamaForCausalLM) with --is-embedding", "nothing is decoded"),
    "prefill": (["--disaggregation-mode", "prefill"], "--disaggregation-mode prefill", "decodes nothing"),
    "encoder": (["--encoder-only"], "--encoder-only", "decodes nothing"),
}


@pytest.mark.parametrize(("words", "found", "reason"), NEVER_DECODES.values(), ids=NEVER_DECODES)
def test_a_server_that_never_decodes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], found: str, reason: str
) -> None:
    from sglang.srt.server_args import prepare_server_args

    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(SystemExit) as caught:
        prepare_server_args(["--model-path", str(tmp_path), "--decode-attention-backend", "lim", *words])
    assert caught.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"lim-sglang: error: {found} does not work with lim: lim makes decode sparse, and ")
    assert reason in line


def test_an_engine_for_embeddings_is_refused(launch: Launch) -> None:
    with pytest.raises(UnsupportedError, match=r"with --is-embedding does not work with lim"):
        check_launch(launch(is_embedding=True))


def test_a_server_that_only_decodes_is_served(tmp_path: Path) -> None:
    """Through the parser and its early judgement; SGLang goes on to ask for a transfer engine."""
    from sglang.srt.server_args import ServerArgs

    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    words = ["--model-path", str(tmp_path), "--attention-backend", "lim", "--port", str(free_port())]
    assert check_command_line(parser.parse_args([*words, "--disaggregation-mode", "decode"])) == {}


@pytest.mark.parametrize(
    ("model_dtype", "options", "found"),
    [
        ("float16", {"kv_cache_dtype": "bfloat16"}, "--kv-cache-dtype bfloat16 with a float16 model"),
        ("float16", {"kv_cache_dtype": "bf16"}, "--kv-cache-dtype bf16 with a float16 model"),
        ("float32", {"kv_cache_dtype": "bf16"}, "--kv-cache-dtype bf16 with a float16 model"),
        ("bfloat16", {"kv_cache_dtype": "bf16", "dtype": "half"}, "--kv-cache-dtype bf16 with a float16 model"),
        ("bfloat16", {"dtype": "float32"}, "--dtype float32"),
        ("bfloat16", {"dtype": "float", "kv_cache_dtype": "bfloat16"}, "--dtype float"),
    ],
    ids=["bfloat16", "bf16", "float32 checkpoint", "asked for", "float32", "float"],
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
        ("float16", {"kv_cache_dtype": "auto"}),
        ("float16", {"kv_cache_dtype": "fp8_e4m3"}),
        ("bfloat16", {"kv_cache_dtype": "bfloat16"}),
        ("float16", {"kv_cache_dtype": "bfloat16", "dtype": "bfloat16"}),
        ("float16", {"kv_cache_dtype": "bfloat16", "device": "cpu"}),
        ("bfloat16", {"dtype": "float32", "device": "cpu"}),
    ],
    ids=["auto", "fp8", "the model's own", "asked for", "on a CPU", "float32 on a CPU"],
)
def test_other_dtypes_are_served(launch: Launch, model_dtype: str, options: dict[str, str]) -> None:
    server_args = launch({"torch_dtype": model_dtype})
    args = compat.effective_args(server_args)
    names = set(SERVER_ARGS_FIELDS)
    view = {name: getattr(args, name) for name in names} | {"device": "cuda"} | options
    check_supported(SimpleNamespace(**view), compat.model_config(server_args))


@pytest.mark.parametrize(
    ("option", "value", "flag"),
    [
        ("tp_size", 2, "--tp-size 2"),
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
        ("page_size", 16, "--page-size 16"),
        ("enable_lora", True, "--enable-lora"),
        ("enable_hierarchical_cache", True, "--enable-hierarchical-cache"),
        ("decode_attention_backend", "torch_native", "--decode-attention-backend torch_native"),
    ],
)
def test_options_that_are_refused(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, option: str, value: Any, flag: str
) -> None:
    monkeypatch.setattr(compat, "pages_need_triton", lambda: True)
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
        assert len([entry for entry in entries if entry.found(args, object())]) == count, (device, chosen)


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


def test_pages_on_a_cpu_are_one_line_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sglang.srt.server_args import prepare_server_args

    monkeypatch.setattr(compat, "pages_need_triton", lambda: True)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    options = ["--attention-backend", "lim", "--load-format", "dummy", "--skip-tokenizer-init", "--device", "cpu"]
    with pytest.raises(SystemExit) as caught:
        prepare_server_args(["--model-path", str(tmp_path), *options, "--page-size", "16"])
    assert caught.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("lim-sglang: error: --page-size 16 does not work with lim: this SGLang allocates them by")
    assert line.endswith("leave out --page-size")


@pytest.mark.skipif(gpu_device() is not None, reason="there the CPU host is never active")
def test_a_cpu_is_refused_where_sglang_would_launch_triton(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that may use a GPU, where the CPU host is off."""
    server_args = launch()
    assert compat.serves_on_cpu()
    monkeypatch.setattr("sglang.srt.utils.common.support_triton", lambda _backend: True)
    text = refusal(server_args)
    assert text.startswith("--device cpu does not work with lim: a process that may use a GPU")
    assert "CUDA_VISIBLE_DEVICES=" in text


@pytest.mark.parametrize("active", [True, False])
def test_the_cpu_host_answers_for_lim_only_while_it_is_on(monkeypatch: pytest.MonkeyPatch, active: bool) -> None:
    monkeypatch.setattr(support_triton, "is_active", lambda: active)
    answers = [support_triton.without_gpu(lambda _backend: True, backend) for backend in ("lim", "triton")]
    assert answers == [not active, True]


def test_a_config_that_cannot_be_read_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sglang.srt.server_args import prepare_server_args

    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(SystemExit):
        prepare_server_args(["--model-path", str(tmp_path), "--attention-backend", "lim"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"lim-sglang: error: {tmp_path} holds no usable model config: ")
    assert line.endswith("check its config.json")


def test_every_refusal_gives_a_reason_and_a_way_out() -> None:
    for entry in REFUSALS:
        assert entry.reason, entry.feature
        assert entry.way_out, entry.feature
    assert len({entry.feature for entry in REFUSALS}) == len(REFUSALS)


def test_other_backends_are_none_of_our_business(launch: Launch) -> None:
    check_launch(launch(MODELS["gemma3"][1], attention_backend="torch_native"))


def test_a_backend_that_sglang_replaces_is_refused(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    server_args = launch()

    class Replaced:
        attention_backend = "triton"

        def __getattr__(self, name: str) -> Any:
            return getattr(server_args, name)

    monkeypatch.setattr(compat, "effective_args", lambda _args: Replaced())
    with pytest.raises(UnsupportedError, match=r"--attention-backend lim .* SGLang replaces it by triton"):
        check_launch(server_args)


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


def test_a_pipeline_stage_without_a_select_layer_is_refused(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    server_args = launch()
    monkeypatch.setenv("SGLANG_LIM_CONFIG", '{"select_layers": [2, 4]}')
    monkeypatch.setattr(compat, "pipeline_stages", lambda layers, _pp: [(0, layers // 2), (layers // 2, layers)])
    with pytest.raises(ValueError, match=r"layers 6 to 11: sparse layer 6 has no select layer"):
        check_launch(server_args)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"budget": 20000}, "budget=20000 selects 15000 tokens by rank: expected at most 8192; lower"),
        ({"budget": 300000, "recency_ratio": 1}, "budget=300000: expected at most 262144 on a GPU; lower"),
    ],
    ids=["ranked", "slots"],
)
def test_a_budget_beyond_the_device_kernels_is_refused(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("SGLANG_LIM_CONFIG", json.dumps(config))
    server_args = launch()
    check_launch(server_args)  # the reference serves it

    class OnGpu:
        device = "cuda"

        def __getattr__(self, name: str) -> Any:
            return getattr(compat_args, name)

    compat_args = compat.effective_args(server_args)
    monkeypatch.setattr(compat, "effective_args", lambda _args: OnGpu())
    with pytest.raises(ValueError, match=message):
        check_launch(server_args)


def test_a_port_that_cannot_be_had_is_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert compat.why_not_bound("127.0.0.1", taken.getsockname()[1]) == "it is in use"
    assert compat.why_not_bound("127.0.0.1", 0) == ""
    assert compat.why_not_bound("192.0.2.1", 0) == "Cannot assign requested address"


@pytest.mark.parametrize(("value", "found"), [(True, "--enable-pdmux"), (False, ""), (None, "")])
def test_pd_multiplexing(value: bool | None, found: str) -> None:
    entry = next(entry for entry in REFUSALS if entry.feature == "PD multiplexing")
    args = SimpleNamespace() if value is None else SimpleNamespace(enable_pdmux=value)  # 0.5.23 has no such field
    assert entry.found(args, object()) == found


def test_pipeline_stages_are_sglangs() -> None:
    assert compat.pipeline_stages(12, 1) == [(0, 12)]
    assert compat.pipeline_stages(12, 2) == [(0, 6), (6, 12)]


def test_model_override_reaches_the_plan(launch: Launch) -> None:
    override = json.dumps({"lim_config": {"budget": 64, "select_layers": [3, 5]}})
    server_args = launch(json_model_override_args=override)
    config, plan = resolve(server_args, compat.model_config(server_args))
    assert config.budget == 64
    assert plan.select_layers == (3, 5)
    assert plan.count(LayerRole.DENSE) == 3


def test_env_and_flags_reach_the_plan_in_their_order(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_LIM_CONFIG", '{"budget": 100, "sink_tokens": 2, "recency_ratio": 0.5}')
    server_args = launch(json_model_override_args='{"lim_config": {"budget": 200, "sink_tokens": 3}}')
    server_args._lim_flags = {"budget": 300}
    config, _ = resolve(server_args, compat.model_config(server_args))
    assert (config.budget, config.sink_tokens, config.recency_ratio) == (300, 3, 0.5)
