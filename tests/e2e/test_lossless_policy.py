"""Drafts by costs that a server measures at its start; however many, the tokens are dense attention's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from lim_sglang.config import ENV_DRAFTS
from lim_sglang.tools.servers.process import ServerProcess

from .conftest import SETTINGS, running, start_lim
from .lossless_requests import LOSSLESS, NEW_TOKENS, counters, ragged_prompts
from .native_client import NativeClient

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("policy") / "server.log"


@pytest.fixture(scope="module")
def server(model_path: Path, log: Path) -> Iterator[ServerProcess]:
    sizes = ["--max-running-requests", "2", "--context-length", "2048"]
    yield from running(start_lim(model_path, log, *LOSSLESS, *sizes, env={ENV_DRAFTS: "auto"}))


@pytest.fixture(scope="module")
def prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return ragged_prompts(tokenizer)


def test_costs_are_measured_at_the_start(server: ServerProcess, log: Path) -> None:
    [line] = [line for line in log.read_text().splitlines() if "costs of steps measured" in line]
    assert all(f"'{kind}': StepTime(batches=(1, 2)" in line for kind in ("dense", "draft", "verify"))


def test_within_the_budget_nothing_is_drafted(
    server: ServerProcess, dense_server: ServerProcess, prompts: list[list[int]]
) -> None:
    within = prompts[3]
    assert len(within) + NEW_TOKENS <= SETTINGS.budget
    ours, theirs = (NativeClient(one.url).generate(within, NEW_TOKENS) for one in (server, dense_server))
    assert ours.tokens == theirs.tokens
    assert counters(server)["verify_steps"] == 0
    assert counters(server)["plain_steps"] >= NEW_TOKENS - 1


def test_tokens_are_denses_whatever_is_drafted(
    server: ServerProcess, dense_server: ServerProcess, prompts: list[list[int]]
) -> None:
    """The measuring has left nothing in the cache, and steps with and without drafts follow each other."""
    some = [prompts[number] for number in (0, 2, 4, 6)]
    ours, theirs = (NativeClient(one.url).generate_together(some, NEW_TOKENS) for one in (server, dense_server))
    assert [answer.tokens for answer in ours] == [answer.tokens for answer in theirs]
