"""Three ranks share the small model's nine query heads: one set at every step, the tokens of one rank, one count."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from lim_sglang.tools.servers.process import ServerProcess

from . import record_sets
from .conftest import CHUNKS, LIM_CONFIG, SETTINGS
from .native_client import NativeClient
from .prompts import make_prompt
from .ranks import attended_in_prometheus, by_request, counters_by_group, decoded_lengths, ranked_server

pytestmark = pytest.mark.e2e

NEW_TOKENS = 16
LENGTHS = (700, 120, 250, 1400)  # the second stays within the budget, the third outgrows it
SELECTS = len(SETTINGS.select_layers)
BEYOND_BUDGET = {n for prompt in LENGTHS for n in decoded_lengths(prompt, NEW_TOKENS) if n > SETTINGS.budget}


@dataclass
class Served:
    """What a server of some ranks answered and selected."""

    tokens: list[list[int]]
    sets: dict[int, list[dict[str, Any]]]
    counters: list[dict[str, Any]] = field(default_factory=list)
    prometheus: dict[str, float] = field(default_factory=dict)


def ask(client: NativeClient, prompts: list[list[int]]) -> list[list[int]]:
    """The tokens of every prompt alone, then of all together."""
    answers = [client.generate(prompt, NEW_TOKENS) for prompt in prompts]
    answers += client.generate_together(prompts, NEW_TOKENS)
    return [answer.tokens for answer in answers]


@pytest.fixture(scope="module")
def prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [make_prompt(tokenizer, seed, length) for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def one_rank(lim_server: ServerProcess, prompts: list[list[int]]) -> Served:
    client, folder = NativeClient(lim_server.url), lim_server.log_path.parent
    client.flush_cache()
    before = len(record_sets.read(folder).get(0, []))
    tokens = ask(client, prompts)
    return Served(tokens, {0: record_sets.read(folder)[0][before:]})


@pytest.fixture(scope="module")
def three_ranks(model_path: Path, tmp_path_factory: pytest.TempPathFactory, prompts: list[list[int]]) -> Served:
    folder = tmp_path_factory.mktemp("three")
    with ranked_server(model_path, folder, 3, LIM_CONFIG, *CHUNKS) as client:
        answered, counted = ask(client, prompts), (counters_by_group(client), attended_in_prometheus(client))
    return Served(answered, record_sets.read(folder), *counted)


def test_all_ranks_hold_one_set_at_every_step(three_ranks: Served) -> None:
    assert sorted(three_ranks.sets) == [0, 1, 2]
    assert len(three_ranks.sets[0]) > SELECTS * NEW_TOKENS
    assert three_ranks.sets[1] == three_ranks.sets[0]
    assert three_ranks.sets[2] == three_ranks.sets[0]


def test_the_sets_are_those_of_one_rank(one_rank: Served, three_ranks: Served) -> None:
    expected, found = (by_request(served.sets[0], SELECTS, BEYOND_BUDGET) for served in (one_rank, three_ranks))
    assert found.keys() == expected.keys() == set(product(range(SELECTS), BEYOND_BUDGET))
    assert all(len(sets) == 2 for sets in expected.values()), "alone and together"
    assert [key for key in found if found[key] != expected[key]] == []


def test_the_tokens_are_those_of_one_rank(one_rank: Served, three_ranks: Served) -> None:
    assert three_ranks.tokens == one_rank.tokens


def test_ranks_count_once(three_ranks: Served) -> None:
    """``/server_info`` and Prometheus tell what one rank attended to."""
    (counters,) = three_ranks.counters
    assert counters["attended_tokens"]["sparse"] > 0
    assert three_ranks.prometheus == counters["attended_tokens"]
