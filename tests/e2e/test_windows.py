"""lim in the full-attention layers of models whose other layers have a sliding window, on tiny random models.

Independent: Hugging Face's model for all that is dense, and the oracle over it, with its windows, for token sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from . import record_sets, window_models
from .conftest import THREADS
from .hf_oracle import OracleSettings, SparseOracle
from .random_models import NEW_TOKENS, TOLERANCE, Served, check, dense_tokens, random_prompt
from .ranks import attended_in_prometheus, by_request, counters_by_group, decoded_lengths, ranked_server
from .window_models import FULL, WINDOW, WINDOWED

pytestmark = pytest.mark.e2e

SETTINGS = OracleSettings(
    budget=64, recency_ratio=0.25, sink_tokens=4, select_layers=FULL[1:3], dense_layers=FULL[:1], margin=1e-3
)
CONFIG = {"budget": 64, "recency_ratio": 0.25, "sink_tokens": 4}  # the rule selects in the layers of SETTINGS
OPTIONS = ["--skip-tokenizer-init", "--max-running-requests", "4"]
CHUNK = 128  # of a prompt
WITHIN, BEYOND = 30, 300  # lengths of prompts; the first stays within the budget, and both outgrow a window
SEEDS = {
    "gemma3": {20: 0, WITHIN: 0, 36: 0, 150: 0, BEYOND: 5},
    "mellum": {20: 0, WITHIN: 0, 36: 0, 150: 1, BEYOND: 8},
}


@pytest.fixture(scope="module")
def mellum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return window_models.make("mellum", tmp_path_factory.mktemp("mellum"))


@pytest.fixture(scope="module", params=window_models.FAMILIES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that prefills in chunks."""
    folder = tmp_path_factory.mktemp(request.param)
    model = window_models.make(request.param, folder / "model")
    torch.set_num_threads(THREADS)
    with ranked_server(model, folder, 1, CONFIG, *OPTIONS, "--chunked-prefill-size", str(CHUNK)) as client:
        yield Served(client, SparseOracle.load(str(model), SETTINGS), SEEDS[request.param])


def test_within_the_budget_tokens_are_dense_ones(served: Served) -> None:
    ids = served.prompt(WITHIN)
    assert served.client.generate(ids, NEW_TOKENS).tokens == dense_tokens(served.oracle, ids)


def test_beyond_the_budget_it_is_the_sparse_algorithm(served: Served) -> None:
    """A turn, and the next one, whose keys and values come from the radix cache."""
    ids, more = served.prompt(BEYOND), [7, 8, 9]
    first = served.client.generate(ids, NEW_TOKENS)
    second = served.client.generate([*ids, *first.tokens, *more], NEW_TOKENS)
    last_fed = second.cached_tokens - (BEYOND + NEW_TOKENS - 1)
    assert last_fed in (0, 1), "SGLang 0.5.16's overlap scheduler has fed the last token, too"
    check(served.oracle, (ids, first), (more, second), last_token_fed=bool(last_fed))
    dense = served.oracle.with_settings(SETTINGS.always_dense()).score([(ids, first.tokens)])[0]
    assert max(abs(ours - theirs) for ours, theirs in zip(first.logprobs, dense, strict=True)) > 20 * TOLERANCE


def test_requests_of_one_batch_are_as_alone(served: Served) -> None:
    prompts = [served.prompt(length) for length in (BEYOND, WITHIN, 150)]
    for ids, generation in zip(prompts, served.client.generate_together(prompts, NEW_TOKENS), strict=True):
        check(served.oracle, (ids, generation))


def test_counters_name_every_role(served: Served) -> None:
    ids = served.prompt(BEYOND)
    (before,), in_prometheus = counters_by_group(served.client), attended_in_prometheus(served.client)
    served.client.generate(ids, NEW_TOKENS)
    (after,) = counters_by_group(served.client)
    steps = after["decode_steps"] - before["decode_steps"]
    total = sum(decoded_lengths(BEYOND, NEW_TOKENS)) + (BEYOND + NEW_TOKENS) * (steps - NEW_TOKENS + 1)
    of_windows = len(WINDOWED) * WINDOW * steps
    expected = {"dense": total, "select": 2 * total, "sparse": SETTINGS.budget * steps, "window": of_windows}
    added = {role: after["attended_tokens"][role] - before["attended_tokens"][role] for role in expected}
    assert added == expected
    assert after["attended_tokens"].keys() == expected.keys()
    assert after["context_tokens"]["window"] == after["attended_tokens"]["window"], "dense attention reads as much"
    later = attended_in_prometheus(served.client)
    assert {role: later[role] - in_prometheus[role] for role in expected} == expected


def test_two_ranks_hold_one_set_and_answer_as_one(mellum: Path, tmp_path: Path) -> None:
    ids = random_prompt(BEYOND, SEEDS["mellum"][BEYOND])
    with ranked_server(mellum, tmp_path, 2, CONFIG, *OPTIONS) as client:
        generation = client.generate(ids, NEW_TOKENS)
    check(SparseOracle.load(str(mellum), SETTINGS), (ids, generation))
    sets = record_sets.read(tmp_path)
    selects, lengths = len(SETTINGS.select_layers), decoded_lengths(BEYOND, NEW_TOKENS)
    assert len(by_request(sets[0], selects, lengths)) == selects * len(lengths)
    assert sets[1] == sets[0]


def test_retracted_requests_end_as_without(mellum: Path, tmp_path: Path) -> None:
    """Within the budget, where the prefill of a retracted request gives what its decode steps gave."""
    env = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "7"}
    prompts = [random_prompt(length, SEEDS["mellum"][length]) for length in (20, WITHIN, 36, BEYOND)]
    with ranked_server(mellum, tmp_path, 1, CONFIG, *OPTIONS, env=env) as client, ThreadPoolExecutor(4) as pool:
        answers: list[Any] = list(pool.map(lambda ids: client.post(ids, {"max_new_tokens": NEW_TOKENS}), prompts))
    assert sum(answer["meta_info"]["num_retractions"] for answer in answers) > 2
    oracle = SparseOracle.load(str(mellum), SETTINGS)
    for ids, answer in zip(prompts, answers, strict=True):
        assert len(answer["output_ids"]) == NEW_TOKENS
        if len(ids) + NEW_TOKENS <= SETTINGS.budget:
            assert answer["output_ids"] == dense_tokens(oracle, ids)
