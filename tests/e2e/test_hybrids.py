"""lim in the attending layers of hybrids with gated delta nets, served on the CPU host, on tiny random models.

Independent: Hugging Face's model for all that is dense, and the oracle over the same model for token sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from . import hybrid_models, record_sets, text_only
from .conftest import THREADS
from .hf_oracle import OracleSettings, SparseOracle
from .random_models import NEW_TOKENS, TOLERANCE, Served, check, dense_tokens, random_prompt
from .ranks import by_request, counters_by_group, decoded_lengths, ranked_server

pytestmark = pytest.mark.e2e

SETTINGS = OracleSettings(
    budget=64, recency_ratio=0.25, sink_tokens=4, select_layers=(7, 11), dense_layers=(3,), margin=1e-3
)
CONFIG = {"budget": 64, "recency_ratio": 0.25, "sink_tokens": 4}  # the rule selects in the layers of SETTINGS
# One state dtype for the convolutions as well: in bfloat16, SGLang's choice, log-probabilities drift by up to 0.6.
STATES = {"SGLANG_MAMBA_CONV_DTYPE": "float32"}
OPTIONS = ["--disable-overlap-schedule", "--skip-tokenizer-init", "--mamba-ssm-dtype", "float32"]
OPTIONS += ["--max-mamba-cache-size", "24", "--max-running-requests", "4"]
WITHIN, BEYOND = 30, 300  # lengths of prompts; the first stays within the budget
# With these seeds no rounding changes a set, and no router's second and third choice are closer than 1e-4.
SEEDS = {
    "qwen3_next": {20: 0, WITHIN: 2, 36: 1, 150: 1, BEYOND: 25},
    "qwen3_5": {WITHIN: 0, 150: 5, BEYOND: 0},
}


def prompt(length: int) -> list[int]:
    return random_prompt(length, SEEDS["qwen3_next"][length])


@pytest.fixture(scope="module")
def next_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hybrid_models.make("qwen3_next", tmp_path_factory.mktemp("models"))[0]


@pytest.fixture(scope="module", params=hybrid_models.FAMILIES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp(request.param)
    model, text = hybrid_models.make(request.param, folder)
    torch.set_num_threads(THREADS)
    with ranked_server(model, folder, 1, CONFIG, *OPTIONS, env=STATES, more=[text_only]) as client:
        yield Served(client, SparseOracle.load(str(text), SETTINGS), SEEDS[request.param])


def test_within_the_budget_tokens_are_dense_ones(served: Served) -> None:
    ids = served.prompt(WITHIN)
    assert served.client.generate(ids, NEW_TOKENS).tokens == dense_tokens(served.oracle, ids)


def test_beyond_the_budget_it_is_the_sparse_algorithm(served: Served) -> None:
    """A turn, and the next one, whose keys, values and states come from the radix cache."""
    ids, more = served.prompt(BEYOND), [7, 8, 9]
    first = served.client.generate(ids, NEW_TOKENS)
    second = served.client.generate([*ids, *first.tokens, *more], NEW_TOKENS)
    assert second.cached_tokens == BEYOND + NEW_TOKENS - 1
    check(served.oracle, (ids, first), (more, second))
    dense = served.oracle.with_settings(SETTINGS.always_dense()).score([(ids, first.tokens)])[0]
    assert max(abs(ours - theirs) for ours, theirs in zip(first.logprobs, dense, strict=True)) > 20 * TOLERANCE


def test_requests_of_one_batch_are_as_alone(served: Served) -> None:
    prompts = [served.prompt(length) for length in (BEYOND, WITHIN, 150)]
    for ids, generation in zip(prompts, served.client.generate_together(prompts, NEW_TOKENS), strict=True):
        check(served.oracle, (ids, generation))


def test_counters_are_of_the_layers_that_attend(served: Served) -> None:
    ids = served.prompt(BEYOND)
    (before,) = counters_by_group(served.client)
    served.client.generate(ids, NEW_TOKENS)
    (after,) = counters_by_group(served.client)
    steps = decoded_lengths(BEYOND, NEW_TOKENS)
    expected = {"dense": sum(steps), "select": 2 * sum(steps), "sparse": SETTINGS.budget * len(steps)}
    assert {role: after["attended_tokens"][role] - before["attended_tokens"][role] for role in expected} == expected


def test_two_ranks_hold_one_set_and_answer_as_one(next_folder: Path, tmp_path: Path) -> None:
    ids = prompt(BEYOND)
    with ranked_server(next_folder, tmp_path, 2, CONFIG, *OPTIONS, env=STATES) as client:
        generation = client.generate(ids, NEW_TOKENS)
    oracle = SparseOracle.load(str(next_folder), SETTINGS)
    check(oracle, (ids, generation))
    sets = record_sets.read(tmp_path)
    selects, lengths = len(SETTINGS.select_layers), decoded_lengths(BEYOND, NEW_TOKENS)
    assert len(by_request(sets[0], selects, lengths)) == selects * len(lengths)
    assert sets[1] == sets[0]


def test_retracted_requests_end_as_without(next_folder: Path, tmp_path: Path) -> None:
    """Within the budget, where the prefill of a retracted request gives what its decode steps gave."""
    env = STATES | {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "7"}
    prompts: list[list[int]] = [prompt(length) for length in (20, WITHIN, 36, BEYOND)]
    with ranked_server(next_folder, tmp_path, 1, CONFIG, *OPTIONS, env=env) as client, ThreadPoolExecutor(4) as pool:
        answers: list[Any] = list(pool.map(lambda ids: client.post(ids, {"max_new_tokens": NEW_TOKENS}), prompts))
    assert sum(answer["meta_info"]["num_retractions"] for answer in answers) > 2
    oracle = SparseOracle.load(str(next_folder), SETTINGS)
    for ids, answer in zip(prompts, answers, strict=True):
        assert len(answer["output_ids"]) == NEW_TOKENS
        if len(ids) + NEW_TOKENS <= SETTINGS.budget:
            assert answer["output_ids"] == dense_tokens(oracle, ids)
