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
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    per_layer = hidden * head_dim * 2 * (heads + kv_heads) + 3 * hidden * _width(config, batch)
    weights = layers * per_layer + config["vocab_size"] * hidden
    selects, _ = select_layers_for_model(layers, config["architectures"][0], hidden, kv_heads, name)
    sparse = LayerPlan.from_select_layers(layers, selects).count(LayerRole.SPARSE)
    tokens = (layers - sparse) * context + sparse * min(context, budget)  # of one request, in all layers
    kv_bytes = 2 * max(kv_heads // tp, 1) * head_dim * 2  # of one token in one layer, bfloat16
    return int(bytes_per_weight * weights // tp + batch * kv_bytes * tokens)


def _width(config: dict[str, Any], batch: int) -> int:
    """Columns of the gate, up and down projections that are read: all, or those of the experts expected to be hit.

    Every token takes ``k`` of ``E`` experts; if they were drawn evenly, ``E * (1 - (1 - k / E) ** batch)`` are hit.
    """
    experts = config.get("num_experts")
    if not experts:
        return int(config["intermediate_size"])
    missed = (1 - config["num_experts_per_tok"] / experts) ** batch
    return round(experts * (1 - missed) * config["moe_intermediate_size"])
