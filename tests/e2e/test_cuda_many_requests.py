"""The CUDA backend under many short requests at once, far beyond the batch sizes that have a graph."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.e2e]

# Llama-3.1-8B's shape, a few layers of it.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 6,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
EAGER_MIB = 64  # what steps without a graph may take beyond the dense backend, over all batch sizes ever met


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@contextmanager
def engine(model: Path, backend: str, budget: int) -> Iterator[Any]:
    import sglang

    os.environ["SGLANG_LIM_CONFIG"] = json.dumps({"budget": budget, "select_layers": [1, 3]})
    running = sglang.Engine(
        model_path=str(model),
        load_format="dummy",
        attention_backend=backend,
        skip_tokenizer_init=True,
        grammar_backend="none",
        sampling_backend="pytorch",
        log_level="error",
        mem_fraction_static=0.4,
        max_running_requests=4096,
        context_length=32768,
        cuda_graph_max_bs_decode=8,
        disable_prefill_cuda_graph=True,
        random_seed=0,
    )
    try:
        yield running
    finally:
        running.shutdown()


def requests(count: int, longest: int) -> list[list[int]]:
    """Prompts of 32 tokens, every 50th of up to ``longest``."""
    draw = random.Random(count)
    lengths = [draw.randrange(32, longest + 1) if number % 50 == 0 else 32 for number in range(count)]
    return [[draw.randrange(1000, 100_000) for _ in range(length)] for length in lengths]


def serve(running: Any, count: int, longest: int) -> dict[str, Any]:
    """All at once, each with its own number of new tokens, so that the batch shrinks step by step."""
    prompts = requests(count, longest)
    new_tokens = [8 + number * 40 // count for number in range(count)]
    sampling = [{"max_new_tokens": new, "ignore_eos": True, "temperature": 0} for new in new_tokens]
    began = time.perf_counter()
    outputs = running.generate(input_ids=prompts, sampling_params=sampling)
    assert [len(output["output_ids"]) for output in outputs] == new_tokens
    return {"seconds": time.perf_counter() - began, "tokens": [output["output_ids"] for output in outputs]}


def used_mib() -> int:
    free, total = torch.cuda.mem_get_info()
    return (total - free) >> 20


def run(model: Path, backend: str, budget: int, longest: int) -> dict[str, Any]:
    with engine(model, backend, budget) as running:
        start = used_mib()
        found = {count: serve(running, count, longest) for count in (1400, 4000)}
        grown = used_mib() - start
        again = serve(running, 1400, longest)
        report = {"start_mib": start, "grown_mib": grown, "grown_again_mib": used_mib() - start - grown}
    return report | {"served": found, "again": again}


@pytest.mark.parametrize(("budget", "longest"), [(2048, 32), (8192, 9000)], ids=["short", "mixed lengths, 8,192"])
def test_thousands_of_requests_are_answered(model: Path, budget: int, longest: int) -> None:
    dense, lim = (run(model, backend, budget, longest) for backend in ("flashinfer", "lim"))
    for name, found in (("dense", dense), ("lim", lim)):
        seconds = ", ".join(f"{count} requests {served['seconds']:.1f} s" for count, served in found["served"].items())
        print(
            f"{name}, budget {budget}, up to {longest} tokens: {found['start_mib']} MiB before, "
            f"{found['grown_mib']:+} MiB after, {found['grown_again_mib']:+} again; {seconds}"
        )
    assert lim["grown_mib"] - dense["grown_mib"] <= EAGER_MIB
    assert lim["grown_again_mib"] <= max(0, dense["grown_again_mib"]) + 2
    pairs = zip(dense["served"][1400]["tokens"], lim["served"][1400]["tokens"], strict=True)
    assert sum(ours[:1] == theirs[:1] for theirs, ours in pairs) >= 1390, "the first token is prefill's, dense in both"
