"""Which models are refused, through the configs that SGLang itself reads."""

from __future__ import annotations

import ast
import inspect

import pytest

from lim_sglang.host.launch import check_launch
from lim_sglang.host.refusals import REFUSALS

from .conftest import ErrorLine, Launch, Prepare

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
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_are_refused(prepare: Prepare, error_line: ErrorLine, name: str) -> None:
    """Through SGLang's own parser, before its assertions about the same models."""
    feature, model = MODELS[name]
    line = error_line(prepare, model)
    expected = next(r for r in REFUSALS if r.feature == feature)
    assert line.startswith(f"lim-sglang: error: the model ({model['architectures'][0]}) does not work with lim: ")
    assert expected.reason in line
    assert line.endswith(expected.way_out)


def test_other_backends_are_none_of_our_business(launch: Launch) -> None:
    check_launch(launch(MODELS["gemma3"][1], attention_backend="torch_native"))


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
