"""A folder of random weights is one that calibration reads, in the layout and precision that its config asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bench.speed.random_model import make
from lim_sglang.tools.analysis.streaming import StreamedModel

from ...lim_sglang.tools.analysis.tiny_checkpoints import CONFIGS

BLOCKS = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32]}}
ROWS = {"quantization_config": {"quant_method": "compressed-tensors", "format": "float-quantized"}}


@pytest.mark.parametrize(
    ("more", "scale", "shape"),
    [({}, None, None), (BLOCKS, "weight_scale_inv", (1, 2)), (ROWS, "weight_scale", (20, 1))],
    ids=["plain", "blocks", "rows"],
)
def test_made_folders_are_streamed(more: dict[str, Any], scale: str | None, shape: Any, tmp_path: Path) -> None:
    (tmp_path / "given.json").write_text(json.dumps(CONFIGS["qwen3_moe"].to_dict() | more))
    (tmp_path / "tokenizer.json").write_text("{}")
    folder = tmp_path / "made"
    make(tmp_path / "given.json", folder, tmp_path, "cpu")
    assert (folder / "tokenizer.json").read_text() == "{}"
    stored: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        stored |= load_file(path)
    expert = "model.layers.1.mlp.experts.4.up_proj"
    assert stored[f"{expert}.weight"].dtype == (torch.float8_e4m3fn if scale else torch.bfloat16)
    assert stored["model.layers.1.mlp.gate.weight"].dtype == torch.bfloat16
    assert {name for name in stored if "scale" in name and expert in name} == (
        {f"{expert}.{scale}"} if scale else set()
    )
    assert not scale or stored[f"{expert}.{scale}"].shape == shape
    model = StreamedModel(folder)
    assert model.dtype == torch.bfloat16
    *_, last = model.forward([list(range(20))])
    assert last[0].shape == (1, 20, 48)
    assert last[0].isfinite().all()
    assert 0.5 < float(stored["lm_head.weight"].float().std() / 0.02) < 2
