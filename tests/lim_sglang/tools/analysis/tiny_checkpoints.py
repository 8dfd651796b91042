"""Tiny random models of every type that can be streamed, in folders as they are published."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Glm4MoeConfig,
    LlamaConfig,
    MellumConfig,
    MiniMaxM2Config,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3_5Config,
    Qwen3_5MoeConfig,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from lim_sglang.tools.analysis.streaming import StreamedModel

LAYERS, VOCABULARY, EXPERTS = 4, 97, 6
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.3,
    "max_position_embeddings": 256,
}
HALF_ROTARY = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
GLM: dict[str, Any] = SHAPE | {
    "rope_parameters": HALF_ROTARY,
    "attention_bias": True,
    "moe_intermediate_size": 20,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "routed_scaling_factor": 2.5,
}
HYBRID_LAYERS = (1, 3)  # of hybrids: those that attend
HYBRID: dict[str, Any] = SHAPE | {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": HALF_ROTARY,
}
EXPERTS_OF_HYBRIDS: dict[str, Any] = {
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 24,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
}
VISION: dict[str, Any] = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 48}
HYBRIDS: dict[str, PretrainedConfig] = {
    "qwen3_next": Qwen3NextConfig(**HYBRID, **EXPERTS_OF_HYBRIDS),
    "qwen3_5_text": Qwen3_5TextConfig(**HYBRID),
    "qwen3_5_moe_text": Qwen3_5MoeTextConfig(**HYBRID, **EXPERTS_OF_HYBRIDS),
    "qwen3_5": Qwen3_5Config(text_config=HYBRID, vision_config=VISION),
    "qwen3_5_moe": Qwen3_5MoeConfig(text_config=HYBRID | EXPERTS_OF_HYBRIDS, vision_config=VISION),
}
WINDOWS: dict[str, PretrainedConfig] = {
    "mellum": MellumConfig(
        **SHAPE,
        layer_types=["full_attention" if layer in HYBRID_LAYERS else "sliding_attention" for layer in range(LAYERS)],
        mlp_layer_types=["dense", *["sparse"] * (LAYERS - 1)],
        sliding_window=7,
        moe_intermediate_size=20,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    )
}
CONFIGS: dict[str, PretrainedConfig] = (
    HYBRIDS
    | WINDOWS
    | {
        "llama": LlamaConfig(**SHAPE, tie_word_embeddings=True),
        "mistral": MistralConfig(**SHAPE, sliding_window=512),  # no smaller than the context
        "qwen2": Qwen2Config(**SHAPE | {"head_dim": 8}),
        "qwen3": Qwen3Config(**SHAPE),
        "qwen3_moe": Qwen3MoeConfig(
            **SHAPE, moe_intermediate_size=20, num_experts=EXPERTS, num_experts_per_tok=2, norm_topk_prob=True
        ),
        "glm4_moe": Glm4MoeConfig(**GLM, first_k_dense_replace=2, use_qk_norm=True),
        "minimax_m2": MiniMaxM2Config(
            **SHAPE, rope_parameters=HALF_ROTARY, num_local_experts=EXPERTS, num_experts_per_tok=2
        ),
    }
)


def write_model(folder: Path, config: PretrainedConfig, **options: Any) -> Path:
    torch.manual_seed(0)
    model_class = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    model = model_class.from_config(config)
    for name, weight in itertools.chain(model.named_parameters(), model.named_buffers()):
        if "norm" in name or "bias" in name:  # ones and zeros as made, which would hide a norm or bias left out
            torch.nn.init.uniform_(weight, 0.5, 1.5)
        if "A_log" in name:  # as made, a gated delta net forgets within a token or two
            torch.nn.init.uniform_(weight, -3, 0)
    model.save_pretrained(folder, **options)
    return folder


def edit_config(folder: Path, without: tuple[str, ...] = (), **changes: Any) -> None:
    path = folder / "config.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in without}
    path.write_text(json.dumps(kept | changes))


def attending(kind: str) -> list[int]:
    return list(HYBRID_LAYERS if kind in HYBRIDS | WINDOWS else range(LAYERS))


def random_ids(length: int, seed: int = 1) -> list[int]:
    return torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def streamed(model: StreamedModel, windows: list[list[int]], **options: Any) -> list[list[Tensor]]:
    """The hidden states at every stage, by text."""
    stages = [list(hidden) for hidden in model.forward(windows, **options)]
    return [list(by_text) for by_text in zip(*stages, strict=True)]


def assert_streamed_as_whole(folder: Path, plain: Path) -> None:
    """Hidden states streamed from ``folder`` are those of transformers' own model of ``plain``."""
    windows = [random_ids(33), random_ids(20, seed=2)]
    whole = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, attn_implementation="eager").eval()
    streaming = StreamedModel(folder, dtype=torch.float32)
    for ids, stages in zip(windows, streamed(streaming, windows), strict=True):
        with torch.inference_mode():
            expected = whole(torch.tensor([ids]), output_hidden_states=True)
            stages[-1] = whole.model.norm(stages[-1])  # as Hugging Face's last one is
        for stage, hidden in zip(stages, expected.hidden_states, strict=True):
            torch.testing.assert_close(stage, hidden, rtol=1e-4, atol=1e-3)
