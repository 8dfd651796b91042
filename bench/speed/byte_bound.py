"""The least bytes that one GPU must move for a decode step: weights once, K and V as often as layers read them.

In a hybrid, most layers attend to no cache: they read and write the states of a gated delta net (GDN), which are as
large at any context. A config of several parts tells of the language model in ``text_config``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lim_sglang.layer_plan import LayerPlan, LayerRole, select_layers_for_model

Config = dict[str, Any]
FP8, BF16 = 1, 2  # bytes of a number
STATE_BYTES = {"float32": 4, "bfloat16": BF16, "float16": BF16}


class StepBytes(NamedTuple):
    """What one GPU moves in a step, by kind."""

    weights: int
    states: int
    cache: int


def step_bytes(config: Config, name: str, batch: int, context: int, budget: int | None, tp: int = 1) -> int:
    """Bytes per step of one of ``tp`` GPUs, see ``step_parts``."""
    return sum(step_parts(config, name, batch, context, budget, tp))


def step_parts(
    config: Config,
    name: str,
    batch: int,
    context: int,
    budget: int | None,
    tp: int = 1,
    *,
    weight_bytes: int | None = None,
    state_bytes: int | None = None,
    kv_bytes: int = BF16,
) -> StepBytes:
    """Bytes per step of one of ``tp`` GPUs that share the heads and the matrices evenly.

    Args:
        config: the model's config.json, ``name``: the model's, which presets go by.
        batch, context: requests and their tokens.
        budget: ``K``, tokens; None for dense attention.
        weight_bytes, state_bytes, kv_bytes: of a number; None for what the config asks for.
    """
    text = text_config(config)
    kv_heads, head_dim = text["num_key_value_heads"], head_dim_of(text)
    each = weight_bytes or (FP8 if config.get("quantization_config") else BF16)
    weights = _hybrid_weights(text, batch, each) if is_hybrid(text) else each * _weights(text, batch)
    state = state_bytes or STATE_BYTES[text.get("mamba_ssm_dtype") or "float32"]
    sparse = 0 if budget is None else _sparse_layers(config, text, name)
    # Of one request, in all layers.
    tokens = (len(attending_layers(text)) - sparse) * context + sparse * min(context, budget or context)
    token_bytes = 2 * max(kv_heads // tp, 1) * head_dim * kv_bytes  # in one layer
    states = 2 * batch * _states_of_request(text, state) if is_hybrid(text) else 0  # read and written
    return StepBytes(weights // tp, states // tp, batch * token_bytes * tokens)


def text_config(config: Config) -> Config:
    """The part that tells of the language model."""
    found: Config = config.get("text_config", config)
    return found


def is_hybrid(text: Config) -> bool:
    """Whether most layers are gated delta nets."""
    return "full_attention_interval" in text


def attending_layers(text: Config) -> range:
    """The numbers of the layers that attend: all, or the last of every interval."""
    interval = text.get("full_attention_interval", 1)
    return range(interval - 1, text["num_hidden_layers"], interval)


def _sparse_layers(config: Config, text: Config, name: str) -> int:
    """How many layers of lim's own plan attend to sets."""
    layers, attending = text["num_hidden_layers"], attending_layers(text)
    shape = layers, config["architectures"][0], text["hidden_size"], text["num_key_value_heads"]
    selects, _ = select_layers_for_model(*shape, name, attending)
    return LayerPlan.from_select_layers(layers, selects, attending).count(LayerRole.SPARSE)


def head_dim_of(text: Config) -> int:
    """The size of a head, which some configs leave to be worked out."""
    return int(text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"])


def _weights(text: Config, batch: int) -> int:
    """Weights that a step reads of a model whose layers all attend."""
    return text["num_hidden_layers"] * (_attention(text) + _projections(text, batch)) + _output(text)


def _hybrid_weights(text: Config, batch: int, each: int) -> int:
    """Bytes of a hybrid's: ``each`` for a weight, but bfloat16 for what checkpoints in FP8 keep in it.

    That is the output, the routers, the convolutions and the two projections for the gates of a delta net. Heads of
    attention have an output gate as wide as the query.
    """
    hidden, layers, attending = text["hidden_size"], text["num_hidden_layers"], len(attending_layers(text))
    values, convolved = _value_width(text), _convolved(text)
    gate = hidden * head_dim_of(text) * text["num_attention_heads"]
    shared = text.get("shared_expert_intermediate_size", 0)
    in_every = _projections(text, batch) + 3 * hidden * shared
    delta_net = hidden * (convolved + values) + values * hidden  # q, k, v and z, and back
    kept = convolved * text["linear_conv_kernel_dim"] + 2 * hidden * text["linear_num_value_heads"]
    router = hidden * (text.get("num_experts", 0) + bool(shared))  # the shared expert has a gate
    converted = layers * in_every + attending * (_attention(text) + gate) + (layers - attending) * delta_net
    return each * converted + BF16 * (layers * router + (layers - attending) * kept + _output(text))


def _states_of_request(text: Config, state_bytes: int) -> int:
    """Bytes of a request's states: a matrix per value head, and the columns before the convolution's last, bfloat16."""
    window = _convolved(text) * (text["linear_conv_kernel_dim"] - 1) * BF16
    matrices = _value_width(text) * text["linear_key_head_dim"] * state_bytes
    return int((text["num_hidden_layers"] - len(attending_layers(text))) * (window + matrices))


def _value_width(text: Config) -> int:
    return int(text["linear_num_value_heads"] * text["linear_value_head_dim"])


def _convolved(text: Config) -> int:
    """Channels of a delta net's convolution: queries, keys and values."""
    return int(2 * text["linear_num_key_heads"] * text["linear_key_head_dim"]) + _value_width(text)


def _attention(text: Config) -> int:
    heads, kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
    return int(text["hidden_size"] * head_dim_of(text) * 2 * (heads + kv_heads))


def _projections(text: Config, batch: int) -> int:
    """Weights of the gate, up and down projections that are read."""
    return int(3 * text["hidden_size"]) * _width(text, batch)


def _output(text: Config) -> int:
    return int(text["vocab_size"] * text["hidden_size"])


def _width(text: Config, batch: int) -> int:
    """Columns of the gate, up and down projections that are read: all, or those of the experts expected to be hit.

    Every token takes ``k`` of ``E`` experts; if they were drawn evenly, ``E * (1 - (1 - k / E) ** batch)`` are hit.
    """
    experts = text.get("num_experts")
    if not experts:
        return int(text["intermediate_size"])
    missed = (1 - text["num_experts_per_tok"] / experts) ** batch
    return round(experts * (1 - missed) * text["moe_intermediate_size"])
