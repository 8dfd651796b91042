"""GPUs share the heads in SGLang's Engine: dense's tokens within the budget, one GPU's beyond it, graph and eager.

The embedded model's nine heads do not divide by two, so weights are dummies; where a token is a near-tie, the sums of
several GPUs may decide otherwise than one's.
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


@pytest.fixture(scope="module", params=[2, 4])
def gpus(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    if torch.cuda.device_count() < count:
        pytest.skip(f"needs {count} NVIDIA GPUs")
    return count


@pytest.fixture(scope="module")
def shared(model: Path, prompts: list[list[int]], gpus: int) -> list[Answer]:
    return answers(model, prompts, "lim", tp_size=gpus)


@pytest.fixture(scope="module")
def one_gpu(model: Path, prompts: list[list[int]]) -> list[Answer]:
    return answers(model, prompts, "lim")


def test_within_the_budget_tokens_are_denses(
    model: Path, prompts: list[list[int]], gpus: int, shared: list[Answer]
) -> None:
    dense = answers(model, prompts, "flashinfer", tp_size=gpus)
    for ours, theirs in zip(shared[: len(WITHIN)], dense, strict=False):
        assert ours.tokens == theirs.tokens


def test_a_graph_and_eager_steps_agree(model: Path, prompts: list[list[int]], gpus: int, shared: list[Answer]) -> None:
    eager = answers(model, prompts, "lim", tp_size=gpus, disable_cuda_graph=True)
    for ours, theirs in zip(shared, eager, strict=True):
        assert_same(ours, theirs)


def test_several_gpus_are_one(shared: list[Answer], one_gpu: list[Answer]) -> None:
    for ours, theirs in zip(shared, one_gpu, strict=True):
        assert_same(ours, theirs)


def test_gpus_that_attend_for_requests_of_their_own_are_one(
    model: Path, prompts: list[list[int]], gpus: int, one_gpu: list[Answer]
) -> None:
    """DP attention: the heads are whole, the MLP is shared."""
    found = answers(model, prompts, "lim", tp_size=gpus, dp_size=gpus, enable_dp_attention=True)
    for ours, theirs in zip(found, one_gpu, strict=True):
        assert_same(ours, theirs)
