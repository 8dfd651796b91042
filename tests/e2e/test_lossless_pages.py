"""The lossless mode with int8 copies, over pages of 16 tokens: dense attention's tokens, also behind a part of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from lim_sglang.host.compat import pages_need_triton
from lim_sglang.tools.servers.process import ServerProcess

from .conftest import running, start_lim
from .lossless_requests import INT8, LOSSLESS, NEW_TOKENS, assert_copies_follow_updates, counters, ragged_prompts
from .native_client import NativeClient
from .short_model import LAYERS

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(pages_need_triton(), reason="this SGLang has no pages on a CPU; the refusal has its own test"),
]


@pytest.fixture(scope="module")
def paged(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("paged") / "server.log"
    yield from running(start_lim(model_path, log, *LOSSLESS, *INT8, "--page-size", "16"))


def test_tokens_are_denses_in_a_batch_alone_and_on_a_second_turn(
    paged: ServerProcess, dense_server: ServerProcess, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = ragged_prompts(tokenizer)[:6]
    ours, theirs = NativeClient(paged.url), NativeClient(dense_server.url)
    first = theirs.generate_together(prompts, NEW_TOKENS)
    found = ours.generate_together(prompts, NEW_TOKENS)
    assert [answer.tokens for answer in found] == [answer.tokens for answer in first]
    ours.flush_cache()
    assert ours.generate(prompts[2], NEW_TOKENS).tokens == first[2].tokens
    turn = [*prompts[2], *first[2].tokens, *prompts[3][:40]]
    second = ours.generate(turn, NEW_TOKENS)
    assert second.tokens == theirs.generate(turn, NEW_TOKENS).tokens
    assert second.cached_tokens >= (len(prompts[2]) + NEW_TOKENS - 1) // 16 * 16
    totals = counters(paged)
    assert totals["accepted_per_round"] > 1
    assert totals["first_draft_acceptance"] > 0.5
    assert (totals["draft_weights"]["layers"], totals["draft_weights"]["fills"]) == (4 * len(LAYERS) + 1, 1)


def test_copies_are_made_anew_of_updated_weights(
    paged: ServerProcess, dense_server: ServerProcess, model_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert_copies_follow_updates(paged, dense_server, model_path, ragged_prompts(tokenizer)[0])
