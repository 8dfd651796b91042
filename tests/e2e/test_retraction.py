"""SGLang puts running requests back every few steps, frees their cache and prefills them again; nothing may be lost."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from lim_sglang.tools.servers.process import ServerProcess

from .conftest import SETTINGS, running, start_lim
from .native_client import NativeClient
from .prompts import make_prompt

pytestmark = pytest.mark.e2e

NEW_TOKENS = 24
LENGTHS = (60, 150, 220, 700)  # the last one outgrows the budget


@pytest.fixture(scope="module")
def retracting_server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    env = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "7"}
    log = tmp_path_factory.mktemp("retracting") / "server.log"
    yield from running(start_lim(model_path, log, env=env))


def test_retracted_requests_end_as_without(
    retracting_server: ServerProcess, lim_server: ServerProcess, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The prefill of a retracted request is dense, so its tokens are the same where the budget holds all of it."""
    prompts = [make_prompt(tokenizer, seed, length) for seed, length in enumerate(LENGTHS)]
    retracting = NativeClient(retracting_server.url)
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: retracting.post(prompt, {"max_new_tokens": NEW_TOKENS}), prompts))
    assert sum(answer["meta_info"]["num_retractions"] for answer in answers) > 2
    assert [len(answer["output_ids"]) for answer in answers] == [NEW_TOKENS] * len(LENGTHS)
    plain = NativeClient(lim_server.url)
    for length, prompt, answer in zip(LENGTHS, prompts, answers, strict=True):
        if length + NEW_TOKENS <= SETTINGS.budget:
            assert answer["output_ids"] == plain.generate(prompt, NEW_TOKENS).tokens, length
