"""The CUDA backend in SGLang's Engine: real weights and text, against the CPU oracle and against itself.

bfloat16 rounds differently from the oracle's float32, and a rounded score can move a token into or out of the set; so
log-probabilities are held to the error that dense FlashInfer shows against the dense oracle on the same prompts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.plugins import add_metadata

from . import overwrite_req_to_token
from .hf_oracle import OracleSettings, SparseOracle
from .prompts import make_prompt

pytestmark = [pytest.mark.gpu, pytest.mark.e2e]

BUDGET = 256
CONFIG = {"budget": BUDGET, "recency_ratio": 0.25, "sink_tokens": 4, "select_layers": [2, 20]}
NEW_TOKENS = 48
LENGTHS = (20, 207, 208, 209, 255, 256, 257, 300, 511, 700, 1024, 1500, 2000, 2500, 3000, 4000)
NEAR_TIE = 0.15  # two log-probabilities that bfloat16 cannot tell apart reliably


@pytest.fixture(scope="module")
def model() -> Path:
    from lim_sglang.tools.servers.embedded_model import ensure_model

    return ensure_model()


@pytest.fixture(scope="module")
def prompts(model: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return [make_prompt(tokenizer, seed, length) for seed, length in enumerate(LENGTHS)]


@contextmanager
def engine(model: Path, backend: str, draft_weights: str = "auto", **options: Any) -> Iterator[Any]:
    import sglang

    os.environ["SGLANG_LIM_CONFIG"] = json.dumps(CONFIG | {"draft_weights": draft_weights})
    settings = {
        "attention_backend": backend,
        "dtype": "bfloat16",
        "context_length": 8192,
        "mem_fraction_static": 0.4,
        "cuda_graph_max_bs_decode": 16,
        "disable_prefill_cuda_graph": True,
        "sampling_backend": "pytorch",
        "grammar_backend": "none",
        "skip_tokenizer_init": True,
        "log_level": "error",
    }
    running = sglang.Engine(model_path=str(model), **(settings | options))
    try:
        yield running
    finally:
        running.shutdown()


class Answer:
    """Tokens, their log-probabilities, and by how much each leads the runner-up."""

    def __init__(self, output: dict[str, Any]) -> None:
        meta = output["meta_info"]
        self.tokens: list[int] = output["output_ids"]
        self.logprobs = [entry[0] for entry in meta["output_token_logprobs"]]
        self.leads = [top[0][0] - top[1][0] for top in meta["output_top_logprobs"]]
        self.cached: int = meta["cached_tokens"]
        self.retractions: int = meta["num_retractions"]


def generate(running: Any, prompts: Sequence[Sequence[int]]) -> list[Answer]:
    sampling = {"max_new_tokens": NEW_TOKENS, "ignore_eos": True, "temperature": 0}
    outputs = running.generate(
        input_ids=[list(p) for p in prompts], sampling_params=sampling, return_logprob=True, top_logprobs_num=2
    )
    return [Answer(output) for output in outputs]


def assert_same(ours: Answer, theirs: Answer) -> None:
    """The same tokens, up to the first place where the two best differ by less than bfloat16 resolves."""
    for place, (one, other) in enumerate(zip(ours.tokens, theirs.tokens, strict=False)):
        if one != other:
            assert min(ours.leads[place], theirs.leads[place]) < NEAR_TIE, f"token {place} differs without a near-tie"
            return
    assert len(ours.tokens) == len(theirs.tokens)


@pytest.fixture(scope="module")
def graph_answers(model: Path, prompts: list[list[int]]) -> dict[str, Any]:
    """One engine with CUDA graphs: the ragged batch, one by one, again from the radix cache."""
    with engine(model, "lim") as running:
        batch = generate(running, prompts)
        again = generate(running, prompts)
        running.flush_cache()
        alone = [generate(running, [prompts[i]])[0] for i in (2, 7, 14)]
        padded = generate(running, prompts[:3])
        state = running.get_server_info()["internal_states"][0]["lim"]
    return {"batch": batch, "again": again, "alone": alone, "padded": padded, "state": state}


def test_a_ragged_batch_equals_single_requests(graph_answers: dict[str, Any]) -> None:
    for ours, index in zip(graph_answers["alone"], (2, 7, 14), strict=True):
        assert_same(ours, graph_answers["batch"][index])


def test_padding_rows_change_nothing(graph_answers: dict[str, Any]) -> None:
    """Three requests run in the graph of four; its last row is of length 1."""
    for ours, theirs in zip(graph_answers["padded"], graph_answers["batch"], strict=False):
        assert_same(ours, theirs)


def test_retracted_requests_end_as_without(
    model: Path, prompts: list[list[int]], graph_answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang puts a request back every few steps and prefills it again with what it has generated.

    Such a prefill is dense, so only requests within the budget must go on to the same tokens.
    """
    monkeypatch.setenv("SGLANG_TEST_RETRACT", "1")
    monkeypatch.setenv("SGLANG_TEST_RETRACT_INTERVAL", "7")
    with engine(model, "lim") as running:
        answers = generate(running, prompts)
    assert sum(answer.retractions for answer in answers) > 3
    assert all(len(answer.tokens) == NEW_TOKENS for answer in answers)
    for index in range(len(prompts)):
        if LENGTHS[index] + NEW_TOKENS <= BUDGET:
            assert_same(answers[index], graph_answers["batch"][index])


def test_radix_hits_change_nothing(graph_answers: dict[str, Any]) -> None:
    for length, first, second in zip(LENGTHS, graph_answers["batch"], graph_answers["again"], strict=True):
        assert second.cached == length - 1
        assert_same(second, first)


def test_req_to_token_may_be_rewritten_once_a_step_has_read_it(
    model: Path,
    prompts: list[list[int]],
    graph_answers: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The layers take their slots from the step's plan; rewriting the table before that is seen, so the test sees."""
    steps, too_early = tmp_path / "steps", tmp_path / "too_early"
    monkeypatch.setenv(overwrite_req_to_token.STEPS, str(steps))
    monkeypatch.setenv(overwrite_req_to_token.TOO_EARLY, str(too_early))
    monkeypatch.syspath_prepend(add_metadata(tmp_path, "lim-test-overwrite", overwrite_req_to_token.__name__))
    with engine(model, "lim", disable_overlap_schedule=True) as running:
        answers = generate(running, prompts)
        running.flush_cache()
        too_early.touch()
        spoilt = generate(running, prompts)
    assert len(steps.read_text()) >= NEW_TOKENS - 1
    for ours, theirs in zip(answers, graph_answers["batch"], strict=True):
        assert_same(ours, theirs)
    assert all(ours.tokens != theirs.tokens for ours, theirs in zip(spoilt, answers, strict=True))


def test_sparse_layers_attended_to_the_budget(graph_answers: dict[str, Any]) -> None:
    counters = graph_answers["state"]["counters"]
    assert counters["decode_steps"] > 3 * NEW_TOKENS
    assert counters["attended_tokens"]["sparse"] < 0.5 * counters["context_tokens"]["sparse"]


def test_without_graphs_and_with_chunked_prefill_the_same(
    model: Path, prompts: list[list[int]], graph_answers: dict[str, Any]
) -> None:
    with engine(model, "lim", disable_cuda_graph=True, chunked_prefill_size=512) as running:
        for ours, theirs in zip(generate(running, prompts), graph_answers["batch"], strict=True):
            assert_same(ours, theirs)


@pytest.mark.parametrize("graphs_too", ["0", "1"], ids=["graphs stay", "graphs are released too"])
def test_memory_released_and_resumed_keeps_tokens(
    model: Path, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch, graphs_too: str
) -> None:
    """As between the rollouts of a training run."""
    monkeypatch.setenv("SGLANG_MEMORY_SAVER_CUDA_GRAPH", graphs_too)
    with engine(model, "lim", enable_memory_saver=True, enable_weights_cpu_backup=True) as running:
        before = generate(running, prompts)
        running.release_memory_occupation()
        running.resume_memory_occupation()
        after = generate(running, prompts)
    assert all(answer.cached == 0 for answer in after), "the cache was released"
    for ours, theirs in zip(after, before, strict=True):
        assert_same(ours, theirs)


def test_deterministic_inference_is_refused(model: Path) -> None:
    """By SGLang itself where lim is named; lim's own refusal is for what SGLang lets through."""
    with (
        pytest.raises(ValueError, match="deterministic inference, but you explicitly specified 'lim'"),
        engine(model, "lim", enable_deterministic_inference=True),
    ):
        pass


def test_logprobs_are_the_oracles_within_bfloat16(
    model: Path, prompts: list[list[int]], graph_answers: dict[str, Any]
) -> None:
    settings = OracleSettings(BUDGET, 0.25, 4, (2, 20))
    oracle = SparseOracle.load(str(model), settings)
    dense_oracle = oracle.with_settings(settings.always_dense())
    with engine(model, "flashinfer") as running:
        dense = generate(running, [prompts[i] for i in (9, 12)])
    for index, dense_answer in zip((9, 12), dense, strict=True):
        ours = graph_answers["batch"][index]
        error = mean_difference(ours, oracle.score([(prompts[index], ours.tokens)])[0])
        dense_error = mean_difference(dense_answer, dense_oracle.score([(prompts[index], dense_answer.tokens)])[0])
        print(f"{LENGTHS[index]} tokens: mean |logprob difference| lim {error:.4f}, dense {dense_error:.4f}")
        assert error <= 2 * dense_error + 0.02


def mean_difference(answer: Answer, expected: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(answer.logprobs, expected, strict=True)) / len(expected)
