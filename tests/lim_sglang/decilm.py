"""The folder of a small Nemotron-NAS model, whose blocks may lack attention; its config comes with code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

CODE = """
from dataclasses import dataclass

from transformers import LlamaConfig


@dataclass
class Attention:
    no_op: bool
    n_heads_in_group: int | None


@dataclass
class Ffn:
    no_op: bool
    ffn_mult: float


@dataclass
class Block:
    attention: Attention
    ffn: Ffn


class DeciLMConfig(LlamaConfig):
    model_type = "nemotron-nas"

    def __init__(self, idle=(), **options):
        super().__init__(**options)
        self.idle = idle
        attention = [Attention(layer in idle, None if layer in idle else 2) for layer in range(self.num_hidden_layers)]
        self.block_configs = [Block(each, Ffn(False, 1.5)) for each in attention]

    def to_dict(self):
        return {key: value for key, value in super().to_dict().items() if key != "block_configs"}
"""
CONFIG = {
    "architectures": ["DeciLMForCausalLM"],
    "model_type": "nemotron-nas",
    "auto_map": {"AutoConfig": "configuration_decilm.DeciLMConfig"},
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 6,
    "vocab_size": 10000,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}


def write_decilm(folder: Path, idle: Sequence[int]) -> None:
    """A model of 6 layers, those in ``idle`` without attention."""
    folder.mkdir(exist_ok=True)
    (folder / "configuration_decilm.py").write_text(CODE)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"idle": list(idle)}))
