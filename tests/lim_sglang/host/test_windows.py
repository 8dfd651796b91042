"""Sliding windows: refused early are those that SGLang will apply, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from lim_sglang.host.model import model_config

from . import tiny_llama
from .conftest import ErrorLine, Prepare

CONTEXT = 4096
LLAMA = tiny_llama.LLAMA | {"num_hidden_layers": 6, "max_position_embeddings": CONTEXT, "pad_token_id": 0}
PHI = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": True}
GEMMA = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "query_pre_attn_scalar": 16,
    "hidden_act": "gelu_pytorch_tanh",
}
OLMO = {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo3"}


SERVED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "phi-4-mini": (PHI | {"sliding_window": 262144, "max_position_embeddings": 131072}, []),
    "a class that ignores it": (PHI | {"sliding_window": 1024}, []),
    "in upper layers, ignored": (QWEN | {"sliding_window": 1024, "max_window_layers": 3}, []),
    "as long as the context": (GEMMA | {"sliding_window": CONTEXT}, []),
    "as long as the context asked for": (GEMMA | {"sliding_window": 1024}, ["--context-length", "1024"]),
    "in no layer": (OLMO | {"sliding_window": 1024, "layer_types": ["full_attention"] * 6}, []),
}


@pytest.mark.parametrize(("model", "flags"), SERVED.values(), ids=SERVED.keys())
def test_windows_that_drop_nothing_are_served(prepare: Prepare, model: dict[str, Any], flags: list[str]) -> None:
    from lim_sglang.host.launch import check_launch

    server_args = prepare(LLAMA | model, *flags)
    check_launch(server_args)
    assert model_config(server_args).sliding_window_size == model["sliding_window"], "else it shows nothing"


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "one token short of the context asked for": (GEMMA | {"sliding_window": 1024}, ["--context-length", "1025"]),
    "in some layers": (
        OLMO | {"sliding_window": 1024, "layer_types": ["sliding_attention", "full_attention"] * 3},
        [],
    ),
}


@pytest.mark.parametrize(("model", "flags"), REFUSED.values(), ids=REFUSED.keys())
def test_windows_that_drop_tokens_are_refused_early(
    prepare: Prepare, error_line: ErrorLine, model: dict[str, Any], flags: list[str]
) -> None:
    line = error_line(prepare, LLAMA | model, *flags)
    assert line.startswith(f"lim-sglang: error: the model ({model['architectures'][0]}) does not work with lim: the ")
    assert "window" in line
