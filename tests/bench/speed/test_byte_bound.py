"""The least bytes of a step, against figures worked out by hand for published models."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.speed.arms import CONFIGS
from bench.speed.byte_bound import step_bytes


def bytes_of(name: str, batch: int, context: int, tp: int = 1, **more: Any) -> int:
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    return step_bytes(config | more, name, batch, context, 2048, tp)


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
