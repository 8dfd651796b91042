"""Three ranks share the small model's nine query heads: one set at every step, the tokens of one rank, one count."""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import PreTrainedTokenizerBase

from bench.speed.host_timer import add_metadata
from lim_sglang.servers.state import lim_state

from . import record_sets
from .conftest import LIM_CONFIG, SETTINGS, running, start_server
from .native_client import NativeClient
from .prompts import make_prompt

pytestmark = pytest.mark.e2e

NEW_TOKENS = 16
LENGTHS = (700, 120, 250, 1400)  # the second stays within the budget, the third outgrows it
SELECTS = len(SETTINGS.select_layers)


@dataclass
class Served:
    """What a server of some ranks answered, selected and counted."""

    tokens: list[list[int]]
    sets: dict[int, list[dict[str, Any]]]
    counters: dict[str, Any]
    prometheus: dict[str, float]

    def by_request(self, rank: int) -> dict[tuple[int, int], list[int]]:
        """The sets of requests beyond the budget by select layer and length, which no two requests share."""
        return {
            (call % SELECTS, length): chosen
            for call, line in enumerate(self.sets[rank])
            for length, chosen in zip(line["lengths"], line["sets"], strict=True)
            if length > SETTINGS.budget
        }


def serve(model_path: Path, folder: Path, prompts: list[list[int]], tp_size: int) -> Served:
    folder.mkdir()
    sets = folder / "sets"
    sets.mkdir()
    path = [str(add_metadata(folder, "lim-test-record-sets", record_sets.__name__)), str(Path(__file__).parents[2])]
    env = {
        "SGLANG_LIM_CONFIG": json.dumps(LIM_CONFIG),
        "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]),
        "SGLANG_CPU_OMP_THREADS_BIND": "|".join(str(rank % (os.cpu_count() or 1)) for rank in range(tp_size)),
        record_sets.FOLDER: str(sets),
    }
    options = ["--attention-backend", "lim", "--enable-metrics", "--tp-size", str(tp_size)]
    server = start_server(model_path, folder / "server.log", *options, env=env)
    with contextmanager(running)(server) as ready:
        client = NativeClient(ready.url)
        answers = [client.generate(prompt, NEW_TOKENS) for prompt in prompts]
        answers += client.generate_together(prompts, NEW_TOKENS)
        metrics = httpx.get(f"{ready.url}/metrics", timeout=60).text
        counters = lim_state(ready.url, 60)["counters"]
    found = re.findall(r"^(sglang:lim_\w+_total\{.*?\}) (\S+)$", metrics, re.MULTILINE)
    return Served(
        [answer.tokens for answer in answers],
        record_sets.read(sets),
        counters,
        {name: float(value) for name, value in found},
    )


@pytest.fixture(scope="module")
def prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [make_prompt(tokenizer, seed, length) for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def one_rank(model_path: Path, tmp_path_factory: pytest.TempPathFactory, prompts: list[list[int]]) -> Served:
    return serve(model_path, tmp_path_factory.mktemp("tp") / "one", prompts, 1)


@pytest.fixture(scope="module")
def three_ranks(model_path: Path, tmp_path_factory: pytest.TempPathFactory, prompts: list[list[int]]) -> Served:
    return serve(model_path, tmp_path_factory.mktemp("tp") / "three", prompts, 3)


def test_all_ranks_hold_one_set_at_every_step(three_ranks: Served) -> None:
    assert sorted(three_ranks.sets) == [0, 1, 2]
    assert len(three_ranks.sets[0]) > SELECTS * NEW_TOKENS
    assert three_ranks.sets[1] == three_ranks.sets[0]
    assert three_ranks.sets[2] == three_ranks.sets[0]


def test_the_sets_are_those_of_one_rank(one_rank: Served, three_ranks: Served) -> None:
    expected = one_rank.by_request(0)
    found = three_ranks.by_request(0)
    assert found.keys() == expected.keys()
    assert len(found) > 2 * SELECTS * NEW_TOKENS
    assert [key for key in found if found[key] != expected[key]] == []


def test_the_tokens_are_those_of_one_rank(one_rank: Served, three_ranks: Served) -> None:
    assert three_ranks.tokens == one_rank.tokens


def test_ranks_count_once(three_ranks: Served) -> None:
    """``/server_info`` and Prometheus tell what one rank attended to."""
    attended = three_ranks.counters["attended_tokens"]
    assert attended["sparse"] > 0
    shown = {
        re.search('role="(.*?)"', name)[1]: value
        for name, value in three_ranks.prometheus.items()
        if "attended" in name
    }
    assert shown == attended
