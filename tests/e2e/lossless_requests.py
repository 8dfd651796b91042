"""What the tests of the lossless mode share: prompts, dense attention's answers, requests, counters."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from bench.fidelity.texts import TEXTS, encode
from lim_sglang.tools.servers.process import ServerProcess
from lim_sglang.tools.servers.state import accepted_per_round, lim_state

from .native_client import REQUEST_TIMEOUT, NativeClient

NEW_TOKENS = 32
DRAFTS = 4
LENGTHS = (300, 520, 900, 140, 1300, 700, 260, 1100)  # within the budget, growing out of it, beyond
LOSSLESS = ("--speculative-algorithm", "LIM", "--speculative-num-draft-tokens", str(DRAFTS + 1))


def ragged_prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Five kinds of text, of ragged lengths."""
    texts = [encode(tokenizer, text()) for text in TEXTS.values()]
    return [texts[number % len(texts)][number * 1500 :][:length] for number, length in enumerate(LENGTHS)]


def post(server: ServerProcess, prompt: list[int], sampling: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The answer to a request that is greedy and of ``NEW_TOKENS`` tokens, if ``sampling`` does not say otherwise."""
    return NativeClient(server.url).post(prompt, {"max_new_tokens": NEW_TOKENS} | sampling, **more)


def counters(server: ServerProcess) -> dict[str, Any]:
    """The totals of the lossless mode, and the mean of accepted drafts."""
    found: dict[str, Any] = lim_state(server.url, REQUEST_TIMEOUT)["counters"]["lossless"]
    return found | {"accepted_per_round": accepted_per_round(found)}
