"""The lossless mode misled: random drafts, chunked prefill, retraction and the end of the context cost no token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from lim_sglang.tools.servers.process import ServerProcess

from . import random_drafts
from .conftest import running, start_lim
from .lossless_requests import DRAFTS, LOSSLESS, NEW_TOKENS, counters, post, ragged_prompts
from .native_client import NativeClient

pytestmark = pytest.mark.e2e

LIMIT = 1400
POOL = 700


@pytest.fixture(scope="module")
def prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return ragged_prompts(tokenizer)


@pytest.fixture(scope="module")
def misled(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Random drafts, prompts prefilled in chunks, requests put back every few steps, a short context."""
    log = tmp_path_factory.mktemp("misled") / "server.log"
    env = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "9"}
    options = [*LOSSLESS, "--chunked-prefill-size", "256", "--context-length", str(LIMIT)]
    yield from running(start_lim(model_path, log, *options, env=env, plugins=[random_drafts]))


def test_a_wrong_draft_never_costs_a_token(
    misled: ServerProcess, dense_server: ServerProcess, prompts: list[list[int]]
) -> None:
    """Random drafts, chunked prefill and retraction at once."""
    ours, theirs = (
        NativeClient(server.url).generate_together(prompts, NEW_TOKENS) for server in (misled, dense_server)
    )
    for found, expected in zip(ours, theirs, strict=True):
        assert found.tokens == expected.tokens
    totals = counters(misled)
    assert totals["drafted_tokens"] > 100
    assert totals["accepted_per_round"] < 0.1


def test_a_request_that_fills_the_pool_ends_by_its_length(
    model_path: Path, tmp_path: Path, dense_server: ServerProcess, prompts: list[list[int]]
) -> None:
    """A round reserves slots that no request may use up; all its tokens but the last few are dense attention's."""
    options = [*LOSSLESS, "--max-total-tokens", str(POOL)]
    with contextmanager(running)(start_lim(model_path, tmp_path / "server.log", *options)) as server:
        answer = post(server, prompts[0], {"max_new_tokens": 4 * POOL})
    found = answer["output_ids"]
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": len(found)}
    assert POOL - 4 * (DRAFTS + 1) < len(prompts[0]) + len(found) < POOL
    assert found == post(dense_server, prompts[0], {"max_new_tokens": len(found)})["output_ids"]


def test_the_end_of_the_context(misled: ServerProcess, dense_server: ServerProcess, prompts: list[list[int]]) -> None:
    """Drafts reach beyond it; the last token before it is dense attention's."""
    prompt = [*prompts[4], *prompts[7]][: LIMIT - 11]
    answer = post(misled, prompt, {"max_new_tokens": 11})
    found = answer["output_ids"]
    assert len(found) >= 9  # SGLang leaves the last places of a context free, drafts or not
    assert answer["meta_info"]["finish_reason"]["type"] == "length"
    assert found == post(dense_server, prompt, {"max_new_tokens": len(found)})["output_ids"]
