"""The lossless mode on a GPU, real weights in bfloat16: dense attention's log-probabilities up to rounding.

A verification's matrix products have other shapes than a decode step's, so near-ties may fall otherwise, as they do
between dense batches of two sizes. Tokens are compared up to the first near-tie, log-probabilities with the oracle's.
"""

# ruff: noqa: F811  (tests name the imported fixtures)

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lim_sglang.tools.servers.state import lim_part

from .hf_oracle import OracleSettings, SparseOracle
from .test_cuda_engine import (
    BUDGET,
    LENGTHS,
    NEW_TOKENS,
    Answer,
    assert_same,
    engine,
    generate,
    mean_difference,
    model,  # noqa: F401
    prompts,  # noqa: F401
)

pytestmark = [pytest.mark.gpu, pytest.mark.e2e]

DRAFTS = 4


@contextmanager
def lossless_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, always: bool = True, draft_weights: str = "int8", **options: Any
) -> Iterator[Any]:
    """One that drafts in every round from int8 copies, if nothing else is said, or only where it pays."""
    monkeypatch.setenv("SGLANG_LIM_DRAFTS", "always" if always else "auto")
    settings = {"speculative_algorithm": "LIM", "speculative_num_draft_tokens": DRAFTS + 1}
    with engine(folder, "lim", draft_weights, **(settings | options)) as running:
        yield running


def counters(running: Any) -> dict[str, int]:
    found: dict[str, int] = lim_part(running.get_server_info())["counters"]["lossless"]
    return found


def fills(running: Any) -> int:
    """How often the copies of the weights were made."""
    found: int = lim_part(running.get_server_info())["lossless"]["draft_weights"]["fills"]
    return found


def second_turns(first: Sequence[list[int]], answers: Sequence[Answer]) -> list[list[int]]:
    """Each prompt, its answer, and some tokens more."""
    return [[*prompt, *answer.tokens, *prompt[:11]] for prompt, answer in zip(first, answers, strict=True)]


@pytest.fixture(scope="module")
def dense(model: Path, prompts: list[list[int]]) -> dict[str, list[Answer]]:
    """Dense attention's answers, in a batch and one by one, and a second turn that finds the first in the cache."""
    with engine(model, "flashinfer") as running:
        batch = generate(running, prompts)
        second = generate(running, second_turns(prompts, batch))
        running.flush_cache()
        alone = [generate(running, [prompt])[0] for prompt in prompts]
    return {"batch": batch, "second": second, "alone": alone}


@pytest.fixture(scope="module")
def found(model: Path, prompts: list[list[int]], dense: dict[str, list[Answer]]) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as monkeypatch, lossless_engine(model, monkeypatch) as running:
        batch = generate(running, prompts)
        counted = counters(running)
        second = generate(running, second_turns(prompts, dense["batch"]))
        running.flush_cache()
        alone = [generate(running, [prompts[index]])[0] for index in (7, 12, 15)]
        sampled = generate_sampled(running, prompts[12])
        filled = fills(running)
    return {"batch": batch, "second": second, "alone": alone, "counters": counted, "sampled": sampled, "fills": filled}


def generate_sampled(running: Any, prompt: list[int]) -> list[dict[str, Any]]:
    """One request of each kind, in one batch: some draft, some do not."""
    common = {"max_new_tokens": 24, "ignore_eos": True}
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.8},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 0.7, "top_k": 20, "min_p": 0.05},
        {"temperature": 0.9, "frequency_penalty": 0.5},
        {"temperature": 0, "logit_bias": {"7": 1.5}},
    ]
    outputs: list[dict[str, Any]] = running.generate(
        input_ids=[prompt] * len(kinds), sampling_params=[common | kind for kind in kinds]
    )
    return outputs


def test_log_probabilities_are_denses_within_bfloat16(
    model: Path, prompts: list[list[int]], dense: dict[str, list[Answer]], found: dict[str, Any]
) -> None:
    """As near to the float32 oracle as dense attention's own, of answers that drafted and of one that a batch held."""
    oracle = SparseOracle.load(str(model), OracleSettings(BUDGET, 0.25, 4, (2, 20)).always_dense())
    for index in (7, 9, 12):
        ours, theirs = (
            mean_difference(answers[index], oracle.score([(prompts[index], answers[index].tokens)])[0])
            for answers in (found["batch"], dense["batch"])
        )
        print(f"{LENGTHS[index]} tokens: mean |logprob difference| lossless {ours:.4f}, dense {theirs:.4f}")
        assert ours <= 2 * theirs + 0.02


def test_tokens_are_denses_up_to_near_ties(dense: dict[str, list[Answer]], found: dict[str, Any]) -> None:
    for ours, theirs in zip(found["batch"], dense["batch"], strict=True):
        assert_same(ours, theirs)
    for ours, index in zip(found["alone"], (7, 12, 15), strict=True):
        assert_same(ours, dense["alone"][index])


def test_generated_tokens_are_reused_as_denses(
    prompts: list[list[int]],
    dense: dict[str, list[Answer]],
    found: dict[str, Any],
) -> None:
    for prompt, ours, theirs, first in zip(prompts, found["second"], dense["second"], found["batch"], strict=True):
        assert_same(ours, theirs)
        if first.tokens == theirs.tokens:
            assert ours.cached >= len(prompt) + NEW_TOKENS - 1


def test_drafts_were_accepted(found: dict[str, Any]) -> None:
    counted = found["counters"]
    assert counted["verify_steps"] > 0
    assert counted["plain_steps"] == 0
    assert 2 < counted["accepted_tokens"] / counted["request_rounds"] <= DRAFTS
    assert found["fills"] == 1


def test_every_kind_of_sampling_is_answered(found: dict[str, Any]) -> None:
    assert [len(output["output_ids"]) for output in found["sampled"]] == [24] * 5
    assert found["sampled"][3]["meta_info"]["spec_verify_ct"] == 23, "penalties: no drafts"
    assert found["sampled"][0]["meta_info"]["spec_accept_length"] > 1.0


@pytest.mark.parametrize(
    "options",
    [{"disable_overlap_schedule": True}, {"disable_cuda_graph": True, "chunked_prefill_size": 512}],
    ids=["without overlap", "without graphs, chunked prefill"],
)
def test_the_same_otherwise_scheduled(
    model: Path,
    prompts: list[list[int]],
    found: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    with lossless_engine(model, monkeypatch, **options) as running:
        for ours, theirs in zip(generate(running, prompts), found["batch"], strict=True):
            assert_same(ours, theirs)


def test_retracted_requests_go_on_to_the_same(
    model: Path,
    prompts: list[list[int]],
    found: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SGLANG_TEST_RETRACT", "1")
    monkeypatch.setenv("SGLANG_TEST_RETRACT_INTERVAL", "3")
    with lossless_engine(model, monkeypatch) as running:
        answers = generate(running, prompts)
    assert sum(answer.retractions for answer in answers) > 3
    for ours, theirs in zip(answers, found["batch"], strict=True):
        assert_same(ours, theirs)


def test_within_the_budget_nothing_is_drafted_where_it_must_pay(
    model: Path,
    prompts: list[list[int]],
    dense: dict[str, list[Answer]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    within = [index for index, length in enumerate(LENGTHS) if length + NEW_TOKENS <= BUDGET]
    with lossless_engine(model, monkeypatch, always=False, draft_weights="model") as running:
        answers = generate(running, [prompts[index] for index in within])
        counted = counters(running)
    assert (counted["verify_steps"], counted["plain_steps"] > NEW_TOKENS // 2) == (0, True)
    for ours, index in zip(answers, within, strict=True):
        assert_same(ours, dense["batch"][index])


@pytest.mark.parametrize("graphs_too", ["0", "1"], ids=["graphs stay", "graphs are released too"])
def test_memory_released_and_resumed_keeps_tokens(
    model: Path, prompts: list[list[int]], found: dict[str, Any], monkeypatch: pytest.MonkeyPatch, graphs_too: str
) -> None:
    """As between the rollouts of a training run."""
    monkeypatch.setenv("SGLANG_MEMORY_SAVER_CUDA_GRAPH", graphs_too)
    with lossless_engine(model, monkeypatch, enable_memory_saver=True, enable_weights_cpu_backup=True) as running:
        before = generate(running, prompts)
        running.release_memory_occupation()
        running.resume_memory_occupation()
        after = generate(running, prompts)
    assert all(answer.cached == 0 for answer in after), "the cache was released"
    for ours, again, theirs in zip(before, after, found["batch"], strict=True):
        assert_same(ours, theirs)
        assert_same(again, theirs)


def test_updated_weights_give_a_fresh_engines_tokens(
    model: Path, prompts: list[list[int]], found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From disk to other weights, and from tensors back, between requests."""
    name = "model.layers.7.mlp.down_proj.weight"
    weights = load_file(model / "model.safetensors")
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    save_file(weights | {name: -weights[name]}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with lossless_engine(tmp_path, monkeypatch) as running:
        fresh = generate(running, prompts)
    assert any(ours.tokens != theirs.tokens for ours, theirs in zip(fresh, found["batch"], strict=True))
    with lossless_engine(model, monkeypatch) as running:
        generate(running, prompts)
        assert running.update_weights_from_disk(str(tmp_path))[0]
        from_disk = generate(running, prompts)
        assert running.update_weights_from_tensor([(name, weights[name].cuda())])[0]
        from_tensors = generate(running, prompts)
        assert counters(running)["verify_steps"] > 0
        assert fills(running) == 3
    for ours, theirs in zip([*from_disk, *from_tensors], [*fresh, *found["batch"]], strict=True):
        assert ours.cached == 0
        assert_same(ours, theirs)


def test_grammars_and_penalties_in_a_mixed_batch_are_denses(
    model: Path, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside requests that draft; a grammar may end its request early."""
    kinds: list[dict[str, Any]] = [
        {"regex": r"[a-z ]{20,40}\."},
        {"frequency_penalty": 0.6, "ignore_eos": True},
        {"ignore_eos": True},
        {"json_schema": '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'},
        {"repetition_penalty": 1.2, "ignore_eos": True},
        {"logit_bias": {"7": 1.5}, "ignore_eos": True},
    ]
    asked = [{"max_new_tokens": NEW_TOKENS, "temperature": 0} | kind for kind in kinds]
    options = {"grammar_backend": "xgrammar", "skip_tokenizer_init": False}

    def answer(running: Any) -> list[Answer]:
        outputs = running.generate(
            input_ids=prompts[-len(kinds) :], sampling_params=asked, return_logprob=True, top_logprobs_num=2
        )
        return [Answer(output) for output in outputs]

    with engine(model, "flashinfer", **options) as running:
        dense = answer(running)
    with lossless_engine(model, monkeypatch, **options) as running:
        ours = answer(running)
        assert counters(running)["verify_steps"] > 0
    for one, other in zip(ours, dense, strict=True):
        assert_same(one, other)
