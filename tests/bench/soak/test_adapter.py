"""The adapter's matrices are those of the model that it adapts."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file

from bench.soak.adapter import RANK, make_adapter

CONFIG = Path(__file__).parents[3] / "bench" / "models" / "Qwen3-8B.json"


def test_shapes_are_the_models(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(CONFIG.read_bytes())
    options = make_adapter(tmp_path, tmp_path / "adapter")
    assert options == f"--enable-lora --lora-paths soak={tmp_path / 'adapter'} --max-lora-rank {RANK}"
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 4 * json.loads(CONFIG.read_text())["num_hidden_layers"]
    first = {name.removeprefix("base_model.model.model.layers.0.self_attn."): t.shape for name, t in tensors.items()}
    assert first["q_proj.lora_A.weight"] == (RANK, 4096)
    assert first["q_proj.lora_B.weight"] == (32 * 128, RANK)
    assert first["v_proj.lora_B.weight"] == (8 * 128, RANK)
    assert all(tensor.abs().max() > 0 for tensor in tensors.values())
    described = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert described["target_modules"] == ["q_proj", "v_proj"]
