"""DP attention in two groups of two ranks, on a tiny model whose class splits heads by group (Llama's does not).

A group without requests runs idle steps beside the other's, since all four ranks share the MLP.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations, pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from lim_sglang.host.host_check import HostName, check
from lim_sglang.tools.servers.state import added_up, counted_since

from . import record_sets
from .ranks import attended_in_prometheus, by_request, counters_by_group, decoded_lengths, ranked_server

HAS_IT = check([HostName("sglang.srt.layers.dp_attention", "memcpy_cpu")])[0].ok
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not HAS_IT, reason="this SGLang serves DP attention on a GPU only; 0.5.23 on a CPU as well"),
]

MODEL = Qwen3Config(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=16,
    max_position_embeddings=4096,
)
STD = 0.4  # of the weights, wide enough for peaked attention
BUDGET, SELECT_LAYERS = 128, (1, 4)
CONFIG = {"budget": BUDGET, "recency_ratio": 0.25, "sink_tokens": 4, "select_layers": list(SELECT_LAYERS)}
SELECTS = len(SELECT_LAYERS)
NEW_TOKENS = 16
WITHIN, OUTGROWS, BEYOND, LONG = 60, 120, 200, 260  # lengths of prompts
# Batches of other sizes round differently. With these seeds neither a set nor a token is a near-tie: noise of 4e-4 on
# all scores, whose deviation is 4, changes no set, and the first token leads the second by 0.09 at least.
SEEDS = {WITHIN: 60_030, OUTGROWS: 120_033, BEYOND: 200_017, LONG: 260_015}
BEYOND_BUDGET = {n for prompt in SEEDS for n in decoded_lengths(prompt, NEW_TOKENS) if n > BUDGET}
# Per phase and group, the prompts that are sent at once.
PHASES: tuple[tuple[Sequence[int], Sequence[int]], ...] = (
    ((BEYOND, WITHIN), ()),
    ((), (LONG,)),
    ((WITHIN,), (OUTGROWS, LONG)),
    ((BEYOND, OUTGROWS, WITHIN), (WITHIN,)),
)


@dataclass
class Served:
    """What a server answered in each phase, selected, and counted: before the phases and after each, by group."""

    tokens: list[list[list[int]]]
    counters: list[list[dict[str, Any]]]
    sets: dict[int, list[dict[str, Any]]]
    prometheus: dict[str, float]


def prompt(length: int) -> list[int]:
    draw = random.Random(SEEDS[length])
    return [draw.randrange(MODEL.vocab_size) for _ in range(length)]


def serve(model: Path, folder: Path, ranks: int, *options: str) -> Served:
    tokens = []
    with ranked_server(model, folder, ranks, CONFIG, "--skip-tokenizer-init", *options) as client:
        counters = [counters_by_group(client)]
        for phase in PHASES:
            groups = [group for group, lengths in enumerate(phase) for _ in lengths] if options else None
            prompts = [prompt(length) for lengths in phase for length in lengths]
            tokens.append([answer.tokens for answer in client.generate_together(prompts, NEW_TOKENS, groups)])
            counters.append(counters_by_group(client))
        return Served(tokens, counters, record_sets.read(folder), attended_in_prometheus(client))


def counted(served: Served) -> list[dict[str, Any]]:
    """What the groups together counted in each phase, but for steps: those of two groups are not those of one."""
    totals = [added_up(states) for states in served.counters]
    return [
        counted_since({"counters": old}, {"counters": new}) | {"rows": new["decode_rows"] - old["decode_rows"]}
        for old, new in pairwise(totals)
    ]


def count(lengths: Sequence[int]) -> dict[str, Any]:
    """What decoding a token at each of these lengths counts."""
    layers = {
        "dense": SELECT_LAYERS[0],
        "select": SELECTS,
        "sparse": MODEL.num_hidden_layers - SELECT_LAYERS[0] - SELECTS,
    }
    context = {role: layers[role] * sum(lengths) for role in layers}
    sparse = layers["sparse"] * sum(min(length, BUDGET) for length in lengths)
    return {"context": context, "attended": context | {"sparse": sparse}, "rows": len(lengths)}


def may_be_counted(prompts: Sequence[int]) -> list[dict[str, Any]]:
    """Every request's steps, with or without the one that overlap scheduling may run after its last token."""
    certain = [n for prompt in prompts for n in decoded_lengths(prompt, NEW_TOKENS)]
    last = [prompt + NEW_TOKENS for prompt in prompts]
    subsets = chain.from_iterable(combinations(last, size) for size in range(len(last) + 1))
    return [count([*certain, *more]) for more in subsets]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3")
    made = Qwen3ForCausalLM(MODEL)
    generator = torch.Generator().manual_seed(0)  # not as Transformers draws: its versions differ
    with torch.no_grad():
        for _, weight in sorted(made.named_parameters()):
            if weight.dim() > 1:
                weight.normal_(std=STD, generator=generator)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def one_rank(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return serve(model, tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def two_groups(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return serve(model, tmp_path_factory.mktemp("groups"), 4, "--dp-size", "2", "--enable-dp-attention")


def test_ranks_of_a_group_hold_one_set_at_every_step(two_groups: Served) -> None:
    assert sorted(two_groups.sets) == [0, 1, 2, 3]
    assert two_groups.sets[1] == two_groups.sets[0]
    assert two_groups.sets[3] == two_groups.sets[2]
    for first in (0, 2):
        assert len(two_groups.sets[first]) >= 2 * SELECTS * (NEW_TOKENS - 1)


def test_the_sets_are_those_of_one_rank(one_rank: Served, two_groups: Served) -> None:
    expected = by_request(one_rank.sets[0], SELECTS, BEYOND_BUDGET)
    found = [by_request(two_groups.sets[first], SELECTS, BEYOND_BUDGET) for first in (0, 2)]
    assert found[0].keys() | found[1].keys() == expected.keys() == set(product(range(SELECTS), BEYOND_BUDGET))
    for group in found:
        assert [key for key, sets in group.items() if any(chosen != expected[key][0] for chosen in sets)] == []


def test_the_tokens_are_those_of_one_rank(one_rank: Served, two_groups: Served) -> None:
    assert two_groups.tokens == one_rank.tokens


@pytest.mark.parametrize("served", ["one_rank", "two_groups"])
def test_every_decoded_token_counts(served: str, request: pytest.FixtureRequest) -> None:
    """Not the rows that fill up a batch, and not the idle steps."""
    for phase, found in zip(PHASES, counted(request.getfixturevalue(served)), strict=True):
        assert found in may_be_counted([*phase[0], *phase[1]])


def test_a_group_without_requests_counts_nothing(two_groups: Served) -> None:
    for phase, (before, after) in zip(PHASES, pairwise(two_groups.counters), strict=True):
        unchanged = [state for state in after if state in before]  # SGLang lists the groups in any order
        assert len(unchanged) == sum(not lengths for lengths in phase)


def test_ranks_of_a_group_count_once(two_groups: Served) -> None:
    """``/server_info`` tells of each group once, Prometheus of both."""
    assert len(two_groups.counters[-1]) == 2
    assert two_groups.prometheus == added_up(two_groups.counters[-1])["attended_tokens"]
