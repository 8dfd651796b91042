"""The lossless mode misled: drafts of two-bit weights, chunked prefill, retraction and a full pool cost no token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from lim_sglang.tools.servers.process import ServerProcess

from . import coarse_copies
from .conftest import running, start_lim
from .lossless_requests import (
    DRAFTS,
    INT8,
    LOSSLESS,
    NEW_TOKENS,
    assert_copies_follow_updates,
    assert_sampled_as_dense,
    counters,
    post,
    ragged_prompts,
)
from .native_client import NativeClient

pytestmark = pytest.mark.e2e

POOL = 800


@pytest.fixture(scope="module")
def prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return ragged_prompts(tokenizer)


@pytest.fixture(scope="module")
def misled(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Drafts of two-bit weights, prompts prefilled in chunks, requests put back every few steps, a small pool."""
    log = tmp_path_factory.mktemp("misled") / "server.log"
    env = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "9"}
    options = [*LOSSLESS, *INT8, "--chunked-prefill-size", "256", "--max-total-tokens", str(POOL)]
    yield from running(start_lim(model_path, log, *options, env=env, plugins=[coarse_copies]))


def test_a_wrong_draft_never_costs_a_token(
    misled: ServerProcess, dense_server: ServerProcess, prompts: list[list[int]]
) -> None:
    some = [prompts[number] for number in (0, 3, 5, 6)]
    ours, theirs = (NativeClient(server.url).generate_together(some, NEW_TOKENS) for server in (misled, dense_server))
    for found, expected in zip(ours, theirs, strict=True):
        assert found.tokens == expected.tokens
    totals = counters(misled)
    assert totals["drafted_tokens"] > 100
    assert totals["accepted_per_round"] < 0.1


def test_nothing_of_a_wrong_draft_is_left_in_the_cache(
    misled: ServerProcess, dense_server: ServerProcess, prompts: list[list[int]]
) -> None:
    """A second turn stands on the K and V of the first."""
    ours, theirs = (NativeClient(server.url) for server in (misled, dense_server))
    turn = [*prompts[3], *theirs.generate(prompts[3], NEW_TOKENS).tokens, *prompts[6][:7]]
    ours.generate(prompts[3], NEW_TOKENS)
    found = ours.generate(turn, NEW_TOKENS)
    assert found.tokens == theirs.generate(turn, NEW_TOKENS).tokens
    assert found.cached_tokens >= len(prompts[3]) + NEW_TOKENS - 1


def test_tokens_sampled_over_wrong_drafts_follow_dense_attention(
    misled: ServerProcess, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert_sampled_as_dense(misled, tokenizer)


def test_a_request_that_fills_the_pool_ends_by_its_length(
    misled: ServerProcess, dense_server: ServerProcess, prompts: list[list[int]]
) -> None:
    """A round reserves slots that no request may use up; all its tokens but the last few are dense attention's."""
    answer = post(misled, prompts[5], {"max_new_tokens": 4 * POOL})
    found = answer["output_ids"]
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": len(found)}
    assert POOL - 4 * (DRAFTS + 1) < len(prompts[5]) + len(found) < POOL
    assert found == post(dense_server, prompts[5], {"max_new_tokens": len(found)})["output_ids"]


def test_copies_are_made_anew_of_updated_weights(
    misled: ServerProcess, dense_server: ServerProcess, model_path: Path, prompts: list[list[int]]
) -> None:
    assert_copies_follow_updates(misled, dense_server, model_path, prompts[3])
