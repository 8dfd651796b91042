"""Two GPUs share the heads in SGLang's Engine: dense's tokens within the budget, one GPU's beyond it, graph and eager.

The embedded model's nine heads do not divide by two, so weights are dummies; where a token is a near-tie, the sums of
two GPUs may decide otherwise than one's.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from .test_cuda_engine import BUDGET, NEW_TOKENS, Answer, assert_same, engine, generate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.e2e,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs"),
]

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WITHIN = (20, 100, BUDGET - NEW_TOKENS)
BEYOND = (257, 300, 700, 1500, 4000)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    draw = random.Random(7)
    return [[draw.randrange(1000, 40_000) for _ in range(length)] for length in (*WITHIN, *BEYOND)]


def answers(model: Path, prompts: list[list[int]], backend: str, **options: Any) -> list[Answer]:
    with engine(model, backend, load_format="dummy", random_seed=0, **options) as running:
        return generate(running, prompts)


@pytest.fixture(scope="module")
def two_gpus(model: Path, prompts: list[list[int]]) -> list[Answer]:
    return answers(model, prompts, "lim", tp_size=2)


def test_within_the_budget_tokens_are_denses(model: Path, prompts: list[list[int]], two_gpus: list[Answer]) -> None:
    dense = answers(model, prompts, "flashinfer", tp_size=2)
    for ours, theirs in zip(two_gpus[: len(WITHIN)], dense, strict=False):
        assert ours.tokens == theirs.tokens


def test_a_graph_and_eager_steps_agree(model: Path, prompts: list[list[int]], two_gpus: list[Answer]) -> None:
    eager = answers(model, prompts, "lim", tp_size=2, disable_cuda_graph=True)
    for ours, theirs in zip(two_gpus, eager, strict=True):
        assert_same(ours, theirs)


def test_two_gpus_are_one(model: Path, prompts: list[list[int]], two_gpus: list[Answer]) -> None:
    for ours, theirs in zip(two_gpus, answers(model, prompts, "lim"), strict=True):
        assert_same(ours, theirs)
