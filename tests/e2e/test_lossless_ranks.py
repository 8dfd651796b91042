"""The lossless mode with int8 copies on three ranks: dense attention's tokens, and all draft and accept alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lim_sglang.tools.servers.process import ServerProcess

from . import record_sets, record_verdicts
from .conftest import LIM_CONFIG
from .lossless_requests import DRAFTS, INT8, LOSSLESS
from .native_client import Generation, NativeClient
from .prompts import make_prompt
from .ranks import ranked_server

pytestmark = pytest.mark.e2e

NEW_TOKENS = 20
LENGTHS = (700, 120, 250)  # beyond the budget, within it, growing out of it
SAMPLED: tuple[dict[str, Any], ...] = (
    {"temperature": 0.8},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.7, "frequency_penalty": 0.5},
)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    return [make_prompt(tokenizer, seed, length) for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def served(
    model_path: Path, tmp_path_factory: pytest.TempPathFactory, prompts: list[list[int]]
) -> tuple[list[Generation], list[dict[str, Any]], dict[int, list[dict[str, Any]]]]:
    """Greedy answers, sampled ones, and what each rank wrote down."""
    folder = tmp_path_factory.mktemp("ranks")
    verdicts = folder / "verdicts"
    verdicts.mkdir()
    env = {record_verdicts.FOLDER: str(verdicts)}
    with ranked_server(model_path, folder, 3, LIM_CONFIG, *LOSSLESS, *INT8, more=[record_verdicts], env=env) as client:
        greedy = client.generate_together(prompts, NEW_TOKENS)
        common = {"max_new_tokens": NEW_TOKENS, "ignore_eos": True}
        sampled = [client.post(prompts[0], common | sampling) for sampling in SAMPLED]
    return greedy, sampled, record_sets.read(verdicts)


def test_greedy_tokens_are_denses(
    served: tuple[list[Generation], Any, Any], dense_server: ServerProcess, prompts: list[list[int]]
) -> None:
    dense = NativeClient(dense_server.url).generate_together(prompts, NEW_TOKENS)
    assert [answer.tokens for answer in served[0]] == [answer.tokens for answer in dense]


def test_ranks_draft_and_accept_alike(served: tuple[Any, list[dict[str, Any]], dict[int, list[Any]]]) -> None:
    _, sampled, verdicts = served
    assert sorted(verdicts) == [0, 1, 2]
    assert verdicts[1] == verdicts[0]
    assert verdicts[2] == verdicts[0]
    assert [len(answer["output_ids"]) for answer in sampled] == [NEW_TOKENS] * 3
    drafted = [line for line in verdicts[0] if line["drafts"]]
    assert len(drafted) > NEW_TOKENS / DRAFTS
    assert 0 < sum(sum(line["accepted"]) for line in drafted) < DRAFTS * sum(len(line["accepted"]) for line in drafted)
    assert len(drafted) < len(verdicts[0]), "the request with penalties drafts nothing"
