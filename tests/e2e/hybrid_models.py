"""Tiny random models in which every fourth layer attends and the others are gated delta nets."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

VOCABULARY = 512
ATTENDING = (3, 7, 11, 15)
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 510,
    "eos_token_id": 511,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
PUBLISHED = {"full_attention_interval": 4, "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
"""Fields of published configs that transformers spells in another way, and SGLang reads."""


IMAGES = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
IMAGE_TOKENS = {"image_token_id": 500, "video_token_id": 501, "vision_start_token_id": 502, "vision_end_token_id": 503}


def qwen3_next() -> PreTrainedModel:
    return Qwen3NextForCausalLM(Qwen3NextConfig(**SHAPE, **EXPERTS, intermediate_size=64))


def qwen3_5() -> PreTrainedModel:
    return Qwen3_5ForCausalLM(Qwen3_5TextConfig(**SHAPE, intermediate_size=128))


FAMILIES = {"qwen3_next": qwen3_next, "qwen3_5": qwen3_5}


def make(family: str, folder: Path) -> tuple[Path, Path]:
    """The checkpoint to serve and that of the language model in it, which is the same one for Qwen3-Next.

    Qwen3.5 is an image-text model: its language model has no class of its own in the oldest release of SGLang.
    """
    torch.manual_seed(0)
    language_model = FAMILIES[family]().float().eval()
    with torch.no_grad():
        for name, weight in language_model.named_parameters():
            if weight.ndim >= 2:  # wide enough for peaked attention
                weight.normal_(0, weight.shape[-1] ** -0.5)
            elif name.endswith("A_log"):  # states that remember: what they forget at once leaves outputs near zero,
                weight.uniform_(-4, -1)  # whose norm makes rounding large
    text = save(language_model, folder / "text")
    if family != "qwen3_5":
        return text, text
    text_config = language_model.config.to_dict()
    model = Qwen3_5ForConditionalGeneration(
        Qwen3_5Config(text_config=text_config, vision_config=IMAGES, **IMAGE_TOKENS, tie_word_embeddings=False)
    )
    model.model.language_model.load_state_dict(language_model.model.state_dict())
    model.lm_head.load_state_dict(language_model.lm_head.state_dict())
    return save(model, folder / "image-text"), text


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Write a checkpoint whose config has what SGLang reads."""
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.get("text_config", config).update(PUBLISHED)
    path.write_text(json.dumps(config))
    return folder
