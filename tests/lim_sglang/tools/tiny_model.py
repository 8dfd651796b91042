"""A tiny random Llama with a tokenizer whose tokens are bytes, what it generates, and its page; a tiny hybrid."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

from lim_sglang.config import LimConfig
from lim_sglang.layer_plan import LayerPlan
from lim_sglang.tools.analysis.model import PolicyModel
from lim_sglang.tools.analysis.policies import LessIsMore
from lim_sglang.tools.inspect.data import Inspection, inspect_generation, token_texts
from lim_sglang.tools.inspect.page import Setting, page_data, render_page

NUM_HEADS = 6
NUM_LAYERS = 6
CONTEXT = 512
HYBRID_LAYERS = (2, 5, 8, 11)  # of the hybrid's twelve: those that attend
SPECIAL = ("<end>", "<user>", "<assistant>")
TEMPLATE = "<user>{{ messages[0]['content'] }}{% if add_generation_prompt %}<assistant>{% endif %}"
CONFIG = LimConfig(budget=24, sink_tokens=2, select_layers=(1, 4))
PLAN = LayerPlan.from_select_layers(NUM_LAYERS, (1, 4))
SETTING = Setting("tiny", NUM_HEADS, CONFIG, PLAN, "given")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte of UTF-8, and the special tokens."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *SPECIAL]
    backend = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=SPECIAL[0],
        additional_special_tokens=list(SPECIAL[1:]),
        chat_template=TEMPLATE,
    )


SHAPE: dict[str, Any] = {
    "vocab_size": 256 + len(SPECIAL),
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": NUM_HEADS,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.4,
    "max_position_embeddings": CONTEXT,
    "eos_token_id": 256,
    "bos_token_id": None,
}
GATED_DELTA_NETS: dict[str, Any] = {
    "num_hidden_layers": 12,
    "full_attention_interval": 3,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
VISION: dict[str, Any] = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 48}


def write_model(folder: Path) -> Path:
    """Random weights wide enough for peaked attention, the same each time."""
    torch.manual_seed(0)
    return _written(LlamaForCausalLM(LlamaConfig(**SHAPE)), folder)


def write_hybrid(folder: Path) -> Path:
    """An image-text model, as hybrids are published; every third layer of its text model attends."""
    torch.manual_seed(0)
    config = Qwen3_5Config(text_config=SHAPE | GATED_DELTA_NETS, vision_config=VISION)
    model = Qwen3_5ForConditionalGeneration(config)
    for name, weight in model.named_parameters():
        if "A_log" in name:  # as made, a gated delta net forgets within a token or two
            torch.nn.init.uniform_(weight, -3, 0)
    return _written(model, folder)


def _written(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


TOKENIZER = byte_tokenizer()


def generate(model: PolicyModel, prompt: str, max_tokens: int, config: LimConfig = CONFIG) -> Inspection:
    return inspect_generation(model, TOKENIZER(prompt)["input_ids"], LessIsMore(PLAN, config.parts), max_tokens)


def page_of(inspection: Inspection, setting: Setting = SETTING) -> str:
    return render_page(page_data(inspection, texts_of(inspection), setting))


def texts_of(inspection: Inspection) -> list[str]:
    return token_texts(TOKENIZER, inspection.prompt_ids + inspection.output_ids)


def embedded_data(page: str) -> dict[str, Any]:
    (text,) = re.findall('<script type="application/json" id="data">(.*)</script>', page)
    found: dict[str, Any] = json.loads(text)
    return found
