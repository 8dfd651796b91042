"""What the tests of the lossless mode share: prompts, dense attention's answers, requests, counters."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from transformers import PreTrainedTokenizerBase

from bench.fidelity.texts import TEXTS, encode
from lim_sglang.tools.servers.process import ServerProcess
from lim_sglang.tools.servers.state import accepted_per_round, lim_state

from .native_client import REQUEST_TIMEOUT, NativeClient

NEW_TOKENS = 32
DRAFTS = 4
LENGTHS = (300, 520, 900, 140, 1300, 700, 260, 1100)  # within the budget, growing out of it, beyond
INT8 = ("--lim-draft-weights", "int8")
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
    state = lim_state(server.url, REQUEST_TIMEOUT)
    found: dict[str, Any] = state["counters"]["lossless"]
    return found | state["lossless"] | {"accepted_per_round": accepted_per_round(found)}


def assert_sampled_as_dense(server: ServerProcess, tokenizer: PreTrainedTokenizerBase) -> None:
    """See that the second token, given the first, which is a round's, is drawn from dense attention's distribution.

    The probabilities are a prefill's.
    """
    prompt = encode(tokenizer, "The three most common colours of cars are black, white and grey. The colour of my car")
    sampling = {"temperature": 0.7, "max_new_tokens": 2, "n": 40}
    found: Counter[tuple[int, int]] = Counter()
    for _ in range(4):
        found.update(tuple(answer["output_ids"]) for answer in post(server, prompt, sampling))
    first = Counter(first for first, _ in found.elements()).most_common(1)[0][0]
    given = {second: count for (one, second), count in found.items() if one == first}
    total = sum(given.values())
    assert total > 100
    answer = post(
        server, [*prompt, first], {"max_new_tokens": 1, "temperature": 0.7}, return_logprob=True, top_logprobs_num=400
    )
    shares = {token: math.exp(logprob) for logprob, token, *_ in answer["meta_info"]["output_top_logprobs"][0]}
    likely = [token for token, share in shares.items() if share * total >= 5]
    rest = 1 - sum(shares[token] for token in likely)
    statistic = sum((given.get(t, 0) - shares[t] * total) ** 2 / (shares[t] * total) for t in likely)
    others = total - sum(given.get(token, 0) for token in likely)
    statistic += (others - rest * total) ** 2 / (rest * total)
    assert statistic < len(likely) + 5 * (2 * len(likely)) ** 0.5, (statistic, len(likely))


def assert_copies_follow_updates(
    server: ServerProcess, dense_server: ServerProcess, model: Path, prompt: list[int]
) -> None:
    """See that the drafts' copies are made once more after an update, which is the same weights again."""
    fills = counters(server)["draft_weights"]["fills"]
    body = {"model_path": str(model)}
    answer = httpx.post(f"{server.url}/update_weights_from_disk", json=body, timeout=REQUEST_TIMEOUT).json()
    assert answer["success"], answer
    ours, theirs = (NativeClient(one.url).generate(prompt, NEW_TOKENS) for one in (server, dense_server))
    assert ours.tokens == theirs.tokens
    assert counters(server)["draft_weights"]["fills"] == fills + 1
