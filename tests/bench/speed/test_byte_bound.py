"""The least bytes of a step: by hand for published models; of hybrids against Transformers' and SGLang's own shapes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.speed.arms import CONFIGS
from bench.speed.byte_bound import StepBytes, is_hybrid, step_bytes, step_parts, text_config


def config_of(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return config


def bytes_of(name: str, batch: int, context: int, tp: int = 1, **more: Any) -> int:
    return step_bytes(config_of(name) | more, name, batch, context, 2048, tp)


# Qwen3-8B has 8.19e9 weights with both embeddings; a step reads the output one alone, 151,936 × 4,096.
WEIGHTS_8B = 36 * (4096 * 128 * (2 * 32 + 2 * 8) + 3 * 4096 * 12288) + 151936 * 4096
KV_TOKEN = 2 * 8 * 128 * 2  # bytes of one token in one layer


def test_a_dense_model() -> None:
    assert 7.5e9 < WEIGHTS_8B < 7.6e9
    assert bytes_of("Qwen3-8B", 8, 32_000) == 2 * WEIGHTS_8B + 8 * KV_TOKEN * (4 * 32_000 + 32 * 2048)
    assert bytes_of("Qwen3-8B", 8, 1000) == 2 * WEIGHTS_8B + 8 * KV_TOKEN * 36 * 1000


def test_gpus_share_what_can_be_divided() -> None:
    """Eight KV heads on 16 GPUs: one on each."""
    assert bytes_of("Qwen3-8B", 8, 32_000, tp=2) == bytes_of("Qwen3-8B", 8, 32_000) // 2
    cache = bytes_of("Qwen3-8B", 8, 32_000, tp=16) - 2 * WEIGHTS_8B // 16
    assert cache == 8 * KV_TOKEN // 8 * (4 * 32_000 + 32 * 2048)


@pytest.mark.parametrize(("batch", "experts"), [(1, 8), (2, 15.5), (10_000, 128)])
def test_a_mixture_reads_the_experts_that_are_hit(batch: int, experts: float) -> None:
    without = bytes_of("Qwen3-30B-A3B", batch, 1, num_experts=1, num_experts_per_tok=1, moe_intermediate_size=0)
    found = bytes_of("Qwen3-30B-A3B", batch, 1) - without
    assert found == 2 * 48 * 3 * 2048 * round(experts * 768)


def test_fp8_weights_are_half_as_large() -> None:
    fp8 = bytes_of("Qwen3-8B", 8, 1000, quantization_config={"quant_method": "fp8"})
    assert bytes_of("Qwen3-8B", 8, 1000) - fp8 == WEIGHTS_8B


BEFORE_HYBRIDS = {
    "GLM-4.5": 35_731_275_776,
    "GLM-4.6": 35_731_275_776,
    "Llama-3.3-70B-Instruct": 74_149_003_264,
    "MiniMax-M2": 6_154_682_368,
    "Qwen3-235B-A22B-FP8": 52_012_613_632,
    "Qwen3-235B-A22B": 101_466_701_824,
    "Qwen3-30B-A3B": 14_695_399_424,
    "Qwen3-32B": 36_093_952_000,
    "Qwen3-8B": 10_738_991_104,
}
"""Bytes of 8 requests of 32,000 tokens on one of two GPUs, as they were before hybrids were told apart."""


def test_models_whose_layers_all_attend_count_as_before() -> None:
    names = sorted(path.stem for path in CONFIGS.glob("*.json"))
    ordinary = [name for name in names if not is_hybrid(text_config(config_of(name)))]
    assert {name: bytes_of(name, 8, 32_000, tp=2) for name in ordinary} == BEFORE_HYBRIDS


# Attending layers, which are fewer by three in lim's plan; bytes of a token in one of them; all weights.
HYBRIDS = {
    "Qwen3-Next-80B-A3B": (12, 2 * 2 * 256 * 2, 79_674_391_296),  # the last is the published count of its tensors
    "Qwen3.5-35B-A3B": (10, 2 * 2 * 256 * 2, 34.7e9),
    "Qwen3.5-27B": (16, 2 * 4 * 256 * 2, 26.9e9),
}
KEPT_IN_BF16 = ("lm_head", "mlp.gate.", "shared_expert_gate", "conv1d", "in_proj_a.", "in_proj_b.", "in_proj_ba.")


@cache
def tensors_of(name: str) -> dict[str, torch.Size]:
    """Names and shapes of the language model's tensors, made by Transformers without memory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    text = dict(text_config(config_of(name)))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(text.pop("model_type"), **text))
    return {key: tensor.shape for key, tensor in model.named_parameters()}


def parts(name: str, batch: int, context: int, budget: int | None = 2048, tp: int = 1, **more: Any) -> StepBytes:
    return step_parts(config_of(name), name, batch, context, budget, tp, **more)


def test_every_hybrid_is_counted_here() -> None:
    assert {path.stem for path in CONFIGS.glob("*.json")} == {*HYBRIDS, *BEFORE_HYBRIDS}


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_hybrid_has_the_size_of_its_name(name: str) -> None:
    assert sum(shape.numel() for shape in tensors_of(name).values()) == pytest.approx(HYBRIDS[name][2], rel=2e-3)
    if isinstance(published := HYBRIDS[name][2], int):
        assert sum(shape.numel() for shape in tensors_of(name).values()) == published


@pytest.mark.parametrize("weight_bytes", [None, 2, 1])
@pytest.mark.parametrize("name", HYBRIDS)
def test_a_large_batch_reads_every_matrix_but_the_embedding(name: str, weight_bytes: int | None) -> None:
    """What FP8 checkpoints keep in bfloat16 takes two bytes."""
    counted = 0
    for key, shape in tensors_of(name).items():
        if len(shape) > 1 and "embed_tokens" not in key:
            counted += shape.numel() * (2 if any(part in key for part in KEPT_IN_BF16) else weight_bytes or 2)
    assert parts(name, 100_000, 1, weight_bytes=weight_bytes).weights == counted
    assert parts(name, 100_000, 1, tp=2, weight_bytes=weight_bytes).weights == counted // 2


@pytest.mark.parametrize(("name", "experts"), [("Qwen3-Next-80B-A3B", 512), ("Qwen3.5-35B-A3B", 256)])
def test_a_request_alone_reads_its_own_experts_and_the_shared_one(name: str, experts: int) -> None:
    text = text_config(config_of(name))
    each = sum(shape.numel() // experts * 2 for key, shape in tensors_of(name).items() if ".experts." in key)
    unused = experts - text["num_experts_per_tok"]
    assert parts(name, 100_000, 1).weights - parts(name, 1, 1).weights == unused * each


def test_a_quantized_checkpoint_says_so_itself() -> None:
    config = config_of("Qwen3.5-35B-A3B") | {"quantization_config": {"quant_method": "fp8"}}
    found = step_parts(config, "Qwen3.5-35B-A3B", 8, 1000, None)
    assert found == parts("Qwen3.5-35B-A3B", 8, 1000, None, weight_bytes=1)


def states_in_sglang(config: dict[str, Any], folder: Path, tp: int = 1) -> int:
    """Bytes of one request's states on one of ``tp`` GPUs, by SGLang's own shapes."""
    from sglang.srt.configs.mamba_utils import Mamba2CacheParams, Mamba2StateShape, mamba2_state_dtype
    from sglang.srt.configs.model_config import ModelConfig

    (folder / "config.json").write_text(json.dumps(config))
    text = ModelConfig(model_path=str(folder), enable_multimodal=False).hf_text_config
    shape = Mamba2StateShape.create(
        tp_world_size=tp,
        intermediate_size=text.linear_value_head_dim * text.linear_num_value_heads,
        n_groups=text.linear_num_key_heads,
        num_heads=text.linear_num_value_heads,
        head_dim=text.linear_value_head_dim,
        state_size=text.linear_key_head_dim,
        conv_kernel=text.linear_conv_kernel_dim,
    )
    found = Mamba2CacheParams(shape=shape, layers=text.linear_layer_ids, dtype=mamba2_state_dtype(text))
    return int(found.mamba_cache_per_req)


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("name", HYBRIDS)
def test_states_are_read_and_written_at_any_context(name: str, tp: int, tmp_path: Path) -> None:
    each = states_in_sglang(config_of(name), tmp_path, tp)
    assert parts(name, 8, 1000, tp=tp).states == parts(name, 8, 250_000, None, tp=tp).states == 2 * 8 * each


def test_states_in_bfloat16(tmp_path: Path) -> None:
    config = config_of("Qwen3.5-27B")
    config["text_config"]["mamba_ssm_dtype"] = "bfloat16"
    found = step_parts(config, "Qwen3.5-27B", 1, 1000, None)
    assert found.states == 2 * states_in_sglang(config, tmp_path)
    assert found == parts("Qwen3.5-27B", 1, 1000, None, state_bytes=2)


@pytest.mark.parametrize("budget", [2048, 8192])
@pytest.mark.parametrize("name", HYBRIDS)
def test_three_attending_layers_read_all_and_the_others_their_sets(name: str, budget: int) -> None:
    attending, token_bytes, _ = HYBRIDS[name]
    assert parts(name, 8, 64_000, None).cache == 8 * token_bytes * attending * 64_000
    tokens = 3 * 64_000 + (attending - 3) * budget
    assert parts(name, 8, 64_000, budget).cache == 8 * token_bytes * tokens
    assert parts(name, 8, 64_000, budget, kv_bytes=1).cache == 8 * token_bytes * tokens // 2
    assert parts(name, 8, 64_000, budget, tp=2).cache == 8 * token_bytes * tokens // 2
    assert parts(name, 8, 2000, budget).cache == parts(name, 8, 2000, None).cache


def test_a_step_is_the_sum_of_its_parts() -> None:
    assert bytes_of("Qwen3.5-35B-A3B", 8, 64_000, tp=2) == sum(parts("Qwen3.5-35B-A3B", 8, 64_000, tp=2))
