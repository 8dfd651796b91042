"""A LoRA adapter of random weights, in the layout of PEFT, for traffic that uses one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

NAME = "soak"
RANK = 8
STD = 0.02  # of both matrices: enough to change tokens, too little to break the model


def make_adapter(model: Path, folder: Path) -> str:
    """Write an adapter of the query and value projections, and return SGLang's options that serve it as ``NAME``."""
    config = json.loads((model / "config.json").read_text())
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rows = {"q_proj": config["num_attention_heads"] * head_dim, "v_proj": config["num_key_value_heads"] * head_dim}
    torch.manual_seed(0)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for projection, size in rows.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{projection}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, config["hidden_size"]) * STD
            tensors[f"{name}.lora_B.weight"] = torch.randn(size, RANK) * STD
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    described = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none"}
    described |= {"target_modules": sorted(rows), "base_model_name_or_path": str(model)}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    return f"--enable-lora --lora-paths {NAME}={folder} --max-lora-rank {RANK}"
