"""The lossless mode misled: random drafts, chunked prefill, retraction and a full pool cost no token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from lim_sglang.tools.servers.process import ServerProcess

from . import random_drafts
from .conftest import running, start_lim
from .lossless_requests import DRAFTS, LOSSLESS, NEW_TOKENS, counters, post, ragged_prompts
from .native_client import NativeClient

pytestmark = pytest.mark.e2e

POOL = 800


@pytest.fixture(scope="module")
def prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return ragged_prompts(tokenizer)


@pytest.fixture(scope="module")
def misled(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Random drafts, prompts prefilled in chunks, requests put back every few steps, a small pool."""
    log = tmp_path_factory.mktemp("misled") / "server.log"
    env = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "9"}
    options = [*LOSSLESS, "--chunked-prefill-size", "256", "--max-total-tokens", str(POOL)]
    yield from running(start_lim(model_path, log, *options, env=env, plugins=[random_drafts]))


def test_a_wrong_draft_never_costs_a_token(
    misled: ServerProcess, dense_server: ServerProcess, prompts: list[list[int]]
) -> None:
    """Random drafts, chunked prefill and retraction at once."""
    some = [prompts[number] for number in (0, 3, 5, 6)]
    ours, theirs = (NativeClient(server.url).generate_together(some, NEW_TOKENS) for server in (misled, dense_server))
    for found, expected in zip(ours, theirs, strict=True):
        assert found.tokens == expected.tokens
    totals = counters(misled)
    assert totals["drafted_tokens"] > 100
    assert totals["accepted_per_round"] < 0.1


def test_a_request_that_fills_the_pool_ends_by_its_length(
    misled: ServerProcess, dense_server: ServerProcess, prompts: list[list[int]]
) -> None:
    """A round reserves slots that no request may use up; all its tokens but the last few are dense attention's."""
    answer = post(misled, prompts[5], {"max_new_tokens": 4 * POOL})
    found = answer["output_ids"]
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": len(found)}
    assert POOL - 4 * (DRAFTS + 1) < len(prompts[5]) + len(found) < POOL
    assert found == post(dense_server, prompts[5], {"max_new_tokens": len(found)})["output_ids"]
