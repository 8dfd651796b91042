"""Sliding windows: refused early are those that SGLang will apply, and no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lim_sglang.host.model import model_config

from . import tiny_llama

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


def prepared(folder: Path, model: dict[str, Any], *flags: str) -> Any:
    """SGLang's launch options by its own parser, with lim's early check on the way."""
    from sglang.srt.server_args import prepare_server_args

    (folder / "config.json").write_text(json.dumps(LLAMA | model))
    fixed = ["--attention-backend", "lim", "--device", "cpu", "--load-format", "dummy", "--skip-tokenizer-init"]
    return prepare_server_args(["--model-path", str(folder), *fixed, *flags])


SERVED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "phi-4-mini": (PHI | {"sliding_window": 262144, "max_position_embeddings": 131072}, []),
    "a class that ignores it": (PHI | {"sliding_window": 1024}, []),
    "in upper layers, ignored": (QWEN | {"sliding_window": 1024, "max_window_layers": 3}, []),
    "as long as the context": (GEMMA | {"sliding_window": CONTEXT}, []),
    "as long as the context asked for": (GEMMA | {"sliding_window": 1024}, ["--context-length", "1024"]),
    "in no layer": (OLMO | {"sliding_window": 1024, "layer_types": ["full_attention"] * 6}, []),
}


@pytest.mark.parametrize(("model", "flags"), SERVED.values(), ids=SERVED.keys())
def test_windows_that_drop_nothing_are_served(tmp_path: Path, model: dict[str, Any], flags: list[str]) -> None:
    from lim_sglang.host.launch import check_launch

    server_args = prepared(tmp_path, model, *flags)
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
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: dict[str, Any], flags: list[str]
) -> None:
    with pytest.raises(SystemExit):
        prepared(tmp_path, model, *flags)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"lim-sglang: error: the model ({model['architectures'][0]}) does not work with lim: the ")
    assert "window" in line
