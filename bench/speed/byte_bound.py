"""The least bytes that one GPU must read for a step of lim: weights once, K and V as often as layers read them."""

from __future__ import annotations

from typing import Any

from lim_sglang.layer_plan import LayerPlan, LayerRole, select_layers_for_model


def step_bytes(config: dict[str, Any], name: str, batch: int, context: int, budget: int, tp: int = 1) -> int:
    """Bytes per step of one of ``tp`` GPUs that share the heads and the matrices evenly.

    Args:
        config: the model's config.json, ``name``: the model's, which presets go by.
        batch, context: requests and their tokens.
        budget: ``K``, tokens.
    """
    bytes_per_weight = 1 if config.get("quantization_config") else 2  # FP8 or bfloat16
    head_dim, kv_heads = _head_dim(config), config["num_key_value_heads"]
    kv_bytes = 2 * max(kv_heads // tp, 1) * head_dim * 2  # of one token in one layer, bfloat16
    return bytes_per_weight * _weights(config, batch) // tp + batch * kv_bytes * _tokens(config, name, context, budget)


def _head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _tokens(config: dict[str, Any], name: str, context: int, budget: int) -> int:
    """Tokens of one request that all layers read together."""
    layers, kv_heads = config["num_hidden_layers"], config["num_key_value_heads"]
    selects, _ = select_layers_for_model(layers, config["architectures"][0], config["hidden_size"], kv_heads, name)
    sparse = LayerPlan.from_select_layers(layers, selects).count(LayerRole.SPARSE)
    return (layers - sparse) * context + sparse * min(context, budget)


def _weights(config: dict[str, Any], batch: int) -> int:
    """Weights that a step of ``batch`` tokens reads."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    attention = hidden * _head_dim(config) * 2 * (heads + config["num_key_value_heads"])
    per_layer = attention + 3 * hidden * _width(config, batch)
    return int(config["num_hidden_layers"] * per_layer + config["vocab_size"] * hidden)


def _width(config: dict[str, Any], batch: int) -> int:
    """Columns of the gate, up and down projections that are read: all, or those of the experts expected to be hit.

    Every token takes ``k`` of ``E`` experts; if they were drawn evenly, ``E * (1 - (1 - k / E) ** batch)`` are hit.
    """
    experts = config.get("num_experts")
    if not experts:
        return int(config["intermediate_size"])
    missed = (1 - config["num_experts_per_tok"] / experts) ** batch
    return round(experts * (1 - missed) * config["moe_intermediate_size"])
