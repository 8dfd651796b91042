"""`--speculative-algorithm LIM`: lim drafts, and what comes out is dense attention's, token by token, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import PreTrainedTokenizerBase

from bench.fidelity.texts import encode
from lim_sglang.metrics import RoundMetrics
from lim_sglang.tools.servers.events import read_events
from lim_sglang.tools.servers.process import ServerProcess

from .conftest import SETTINGS, running, start_lim
from .hf_oracle import SparseOracle
from .lossless_requests import (
    DRAFTS,
    LOSSLESS,
    NEW_TOKENS,
    assert_sampled_as_dense,
    counters,
    post,
    ragged_prompts,
)
from .native_client import REQUEST_TIMEOUT, Generation, NativeClient

pytestmark = pytest.mark.e2e

LOGPROB_TOLERANCE = 2e-3
LIMIT = 1500
SHORT = 20


@pytest.fixture(scope="module")
def prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return ragged_prompts(tokenizer)


@pytest.fixture(scope="module")
def lossless(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("lossless") / "server.log"
    options = ["--enable-metrics", "--context-length", str(LIMIT), "--reasoning-parser", "qwen3"]
    yield from running(start_lim(thinking_model(model_path, log.parent / "thinking"), log, *LOSSLESS, *options))


def thinking_model(model: Path, folder: Path) -> Path:
    """The model with a token for the begin and one for the end of its thoughts, which are two that no text holds."""
    folder.mkdir()
    for file in model.iterdir():
        if file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file)
        else:
            text = file.read_text().replace("<file_sep>", "<think>").replace("<filename>", "</think>")
            (folder / file.name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def dense(dense_server: ServerProcess, prompts: list[list[int]]) -> list[Generation]:
    return NativeClient(dense_server.url).generate_together(prompts, NEW_TOKENS)


def close(ours: list[float], theirs: list[float]) -> bool:
    return all(abs(a - b) <= LOGPROB_TOLERANCE for a, b in zip(ours, theirs, strict=True))


def test_greedy_tokens_are_denses_in_a_ragged_batch_and_alone(
    lossless: ServerProcess, prompts: list[list[int]], dense: list[Generation]
) -> None:
    client = NativeClient(lossless.url)
    for found, expected in zip(client.generate_together(prompts, NEW_TOKENS), dense, strict=True):
        assert found.tokens == expected.tokens
        assert close(found.logprobs, expected.logprobs)
    client.flush_cache()
    assert client.generate(prompts[2], NEW_TOKENS).tokens == dense[2].tokens
    totals = counters(lossless)
    assert totals["verify_steps"] > 0
    assert 1 < totals["accepted_per_round"] < DRAFTS, "some drafts are wrong, and most are right"


def test_what_a_round_leaves_in_the_cache_is_denses(
    lossless: ServerProcess, prompts: list[list[int]], dense: list[Generation], oracle: SparseOracle
) -> None:
    """A second turn behind a generated first one: its tokens come from the cache, drafts and all."""
    client, follow_up = NativeClient(lossless.url), prompts[3][:40]
    for number in (1, 4):
        first = client.generate(prompts[number], NEW_TOKENS)
        turn = [*prompts[number], *first.tokens, *follow_up]
        second = client.generate(turn, 12)
        assert second.cached_tokens >= len(prompts[number]) + NEW_TOKENS - 1
        reference = oracle.with_settings(SETTINGS.always_dense()).score([(turn, second.tokens)])
        assert close(second.logprobs, reference[0])


def test_an_aborted_round_leaves_nothing_behind(
    lossless: ServerProcess, prompts: list[list[int]], dense: list[Generation]
) -> None:
    client = NativeClient(lossless.url)
    assert client.disconnect_after(prompts[5], 400, events=3) >= 3
    assert client.wait_running(0, timeout=60)
    again = client.generate(prompts[5], NEW_TOKENS)
    assert again.tokens == dense[5].tokens
    assert close(again.logprobs, dense[5].logprobs)


# What a request may ask for, and whether it may draft; all greedy here, so that dense attention's tokens are certain.
ASKED: dict[str, tuple[dict[str, Any], bool]] = {
    "frequency penalty": ({"frequency_penalty": 0.6}, False),
    "presence penalty": ({"presence_penalty": 0.9}, False),
    "repetition penalty": ({"repetition_penalty": 1.2}, False),
    "logit bias": ({"logit_bias": {"28": 4.0, "216": -3.0}}, True),
    "regex": ({"regex": r"[a-z ]{5,20}\.", "ignore_eos": False}, False),
    "minimum length": ({"min_new_tokens": SHORT, "ignore_eos": False}, False),
    "stop string": ({"stop": [" the", "0"], "ignore_eos": False}, True),
    "stop token": ({"stop_token_ids": [28, 30], "ignore_eos": False}, True),
    "short": ({"max_new_tokens": 2}, True),
    "several": ({"n": 2}, True),
}


@pytest.mark.parametrize(("sampling", "drafts"), ASKED.values(), ids=ASKED)
def test_a_request_gets_what_dense_attention_gives(
    lossless: ServerProcess,
    dense_server: ServerProcess,
    prompts: list[list[int]],
    sampling: dict[str, Any],
    drafts: bool,
) -> None:
    before = counters(lossless)
    asked = {"max_new_tokens": SHORT} | sampling
    answers = [post(server, prompts[1], asked, return_logprob=True) for server in (lossless, dense_server)]
    ours, theirs = (answer if isinstance(answer, list) else [answer] for answer in answers)
    for found, expected in zip(ours, theirs, strict=True):
        assert found["output_ids"] == expected["output_ids"]
        assert found["meta_info"]["finish_reason"] == expected["meta_info"]["finish_reason"]
        both = ([p[0] for p in a["meta_info"]["output_token_logprobs"]] for a in (found, expected))
        assert close(*both)
    after = counters(lossless)
    assert (after["request_rounds"] > before["request_rounds"]) == drafts
    assert (after["plain_steps"] > before["plain_steps"]) == (not drafts)


def test_a_stop_that_a_round_passes_with_the_length_ends_the_answer(
    lossless: ServerProcess, dense_server: ServerProcess, prompts: list[list[int]], dense: list[Generation]
) -> None:
    """For every length that the round of the stop token may reach, and the one that ends at the stop itself."""
    answers = [answer.tokens for answer in dense]
    number, at = next((i, n) for i, t in enumerate(answers) for n in range(6, NEW_TOKENS) if t[n] not in t[:n])
    tokens = answers[number]
    for most in range(at + 1, at + 2 + DRAFTS):
        sampling = {"stop_token_ids": [tokens[at]], "max_new_tokens": most, "ignore_eos": False}
        ours, theirs = (post(server, prompts[number], sampling) for server in (lossless, dense_server))
        assert ours["output_ids"] == theirs["output_ids"] == tokens[: at + 1], most
        assert ours["meta_info"]["finish_reason"] == theirs["meta_info"]["finish_reason"], most


def test_the_end_of_the_context(lossless: ServerProcess, dense_server: ServerProcess, prompts: list[list[int]]) -> None:
    """Drafts reach beyond it; the last token before it is dense attention's."""
    prompt = [*prompts[4], *prompts[7]][: LIMIT - 11]
    answer = post(lossless, prompt, {"max_new_tokens": 11})
    found = answer["output_ids"]
    assert len(found) >= 9  # SGLang leaves the last places of a context free, drafts or not
    assert answer["meta_info"]["finish_reason"]["type"] == "length"
    assert found == post(dense_server, prompt, {"max_new_tokens": len(found)})["output_ids"]


def test_requests_that_may_not_draft_share_a_batch_with_those_that_may(
    lossless: ServerProcess, dense_server: ServerProcess, prompts: list[list[int]]
) -> None:
    kinds = [sampling for sampling, _ in ASKED.values() if "n" not in sampling]

    def ask(server: ServerProcess) -> list[list[int]]:
        with ThreadPoolExecutor(len(kinds)) as pool:
            futures = [pool.submit(post, server, prompts[n % 3], kind) for n, kind in enumerate(kinds)]
            return [future.result()["output_ids"] for future in futures]

    assert ask(lossless) == ask(dense_server)


def test_log_probabilities_of_other_tokens(
    lossless: ServerProcess, dense_server: ServerProcess, prompts: list[list[int]]
) -> None:
    ask = {"return_logprob": True, "top_logprobs_num": 3, "token_ids_logprob": [5, 28]}
    ours, theirs = (
        post(server, prompts[4], {"max_new_tokens": 12}, **ask)["meta_info"] for server in (lossless, dense_server)
    )
    for key in ("output_top_logprobs", "output_token_ids_logprobs"):
        assert len(ours[key]) == 12
        for found, expected in zip(ours[key], theirs[key], strict=True):
            assert [token for _, token, *_ in found] == [token for _, token, *_ in expected]
            assert close([value for value, *_ in found], [value for value, *_ in expected])


def test_sampled_tokens_follow_dense_attention(lossless: ServerProcess, tokenizer: PreTrainedTokenizerBase) -> None:
    assert_sampled_as_dense(lossless, tokenizer)


@pytest.mark.parametrize("end", ["length", "stop_token_ids", "stop"])
def test_the_next_turn_of_a_session_stands_on_what_its_client_saw(
    lossless: ServerProcess, dense_server: ServerProcess, tokenizer: PreTrainedTokenizerBase, end: str
) -> None:
    """Plain, a branch that drops the last output, and one that goes back to an offset.

    A stop comes in the midst of a round, whose tokens behind it nobody sees.
    """
    text = encode(tokenizer, "Step 1: 2 + 3 = 5. Step 2: 5 + 3 = 8. Step 3: 8 + 3 = 11. Step 4:")
    turn = encode(tokenizer, " So")
    third = post(dense_server, text, {"max_new_tokens": 3})["output_ids"][2]
    ends = {"length": {}, "stop_token_ids": {"stop_token_ids": [third]}, "stop": {"stop": [tokenizer.decode([third])]}}

    def converse(server: ServerProcess) -> list[tuple[list[int], int]]:
        opened = httpx.post(f"{server.url}/open_session", json={"capacity_of_str_len": 2000}, timeout=REQUEST_TIMEOUT)
        session = {"id": opened.raise_for_status().json()}
        sampling = {"ignore_eos": False, "max_new_tokens": 10}
        answers = [post(server, text, sampling | ends[end], session_params=session)]
        assert answers[0]["meta_info"]["finish_reason"]["type"] == ("length" if end == "length" else "stop")
        first = session | {"rid": answers[0]["meta_info"]["id"]}
        for more in ({}, {"drop_previous_output": True}, {"offset": len(text) + 1}, {"replace": True}):
            answers.append(post(server, turn, sampling, session_params=first | more))
        return [(answer["output_ids"], answer["meta_info"]["prompt_tokens"]) for answer in answers]

    assert converse(lossless) == converse(dense_server)


def chat(server: ServerProcess, stream: bool, **asked: Any) -> list[dict[str, Any]]:
    """The answer to a chat, or its events."""
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Count to ten."}], "temperature": 0}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body | asked, timeout=REQUEST_TIMEOUT)
    assert answer.status_code == 200, answer.text
    if not stream:
        return [answer.json()]
    return list(read_events([answer.content]))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("end", [{"max_tokens": 2}, {"max_tokens": 30, "stop": [","]}], ids=["length", "string"])
def test_reasoning_is_part_of_what_was_completed(lossless: ServerProcess, end: dict[str, Any], stream: bool) -> None:
    """The model never ends its thoughts: all that it says is reasoning."""
    usage = chat(lossless, stream, **end)[-1]["usage"]
    assert usage["reasoning_tokens"] == usage["completion_tokens"] > 0


def alternatives(token: dict[str, Any]) -> tuple[list[str], list[float]]:
    """A token of a chat and those that it might have been, and their log-probabilities."""
    found = [token, *token["top_logprobs"]]
    return [one["token"] for one in found], [one["logprob"] for one in found]


def test_every_token_of_a_streamed_chat_has_its_own_alternatives(lossless: ServerProcess) -> None:
    asked = {"max_tokens": 12, "logprobs": True, "top_logprobs": 2, "separate_reasoning": False, "n": 2}
    [whole] = chat(lossless, stream=False, **asked)
    events = [event["choices"][0] for event in chat(lossless, stream=True, **asked) if event["choices"]]
    for choice in whole["choices"]:
        mine = [event["logprobs"] for event in events if event["index"] == choice["index"]]
        told = [logprobs["content"] for logprobs in mine if logprobs]
        assert max(map(len, told)) > 1, "rounds of several tokens"
        streamed, whole_ones = [token for tokens in told for token in tokens], choice["logprobs"]["content"]
        assert [alternatives(token)[0] for token in streamed] == [alternatives(token)[0] for token in whole_ones]
        for ours, theirs in zip(streamed, whole_ones, strict=True):
            assert close(alternatives(ours)[1], alternatives(theirs)[1])


def test_rounds_are_counted_as_sglang_counts_them(lossless: ServerProcess, prompts: list[list[int]]) -> None:
    before = counters(lossless)
    answers = [post(lossless, prompts[0], {"max_new_tokens": length})["meta_info"] for length in (9, 18, 32)]
    after = counters(lossless)
    for ours, sglangs in (("request_rounds", "spec_verify_ct"), ("accepted_tokens", "spec_num_correct_drafts")):
        assert after[ours] - before[ours] == sum(answer[sglangs] for answer in answers), ours


def test_the_counters_are_shown(lossless: ServerProcess, prompts: list[list[int]]) -> None:
    meta = post(lossless, prompts[0], {})["meta_info"]
    assert meta["spec_accept_length"] > 1
    totals = counters(lossless)
    metrics = httpx.get(f"{lossless.url}/metrics", timeout=REQUEST_TIMEOUT).text
    for name in RoundMetrics().report():
        [shown] = [line for line in metrics.splitlines() if line.startswith(f"sglang:lim_{name}_total")]
        assert float(shown.split()[-1]) == totals[name]


def test_weights_updated_from_disk_are_served(
    lossless: ServerProcess, model_path: Path, prompts: list[list[int]], dense: list[Generation]
) -> None:
    """In SGLang's own words; the same weights again, so that the tokens are dense attention's."""
    body = {"model_path": str(model_path)}
    answer = httpx.post(f"{lossless.url}/update_weights_from_disk", json=body, timeout=REQUEST_TIMEOUT).json()
    assert (answer["success"], answer["message"]) == (True, "Succeeded to update model weights.")
    assert NativeClient(lossless.url).generate(prompts[0], NEW_TOKENS).tokens == dense[0].tokens
