"""Tiny random models in which every third layer attends to all tokens and the others have a sliding window."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, MellumConfig, MellumForCausalLM, PreTrainedModel

VOCABULARY = 512
LAYERS, WINDOW = 12, 16
FULL = (2, 5, 8, 11)
WINDOWED = tuple(layer for layer in range(LAYERS) if layer not in FULL)
ROPE = {
    kind: {"rope_type": "default", "rope_theta": theta}
    for kind, theta in (("full_attention", 1e6), ("sliding_attention", 1e4))
}
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "layer_types": ["full_attention" if layer in FULL else "sliding_attention" for layer in range(LAYERS)],
    "sliding_window": WINDOW,
    "rope_parameters": ROPE,
    "bos_token_id": 510,
    "eos_token_id": 511,
}


def gemma3() -> PreTrainedModel:
    """All layers keep the whole context in one pool."""
    return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, query_pre_attn_scalar=32))


def mellum() -> PreTrainedModel:
    """Layers with a window have a pool of their own, which drops what lies before it."""
    return MellumForCausalLM(MellumConfig(**SHAPE, mlp_layer_types=["dense"] * LAYERS))


FAMILIES = {"gemma3": gemma3, "mellum": mellum}


def make(family: str, folder: Path) -> Path:
    """A checkpoint of one of ``FAMILIES``."""
    torch.manual_seed(0)
    model = FAMILIES[family]().float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:  # wide enough for peaked attention
                weight.normal_(0, weight.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return folder
