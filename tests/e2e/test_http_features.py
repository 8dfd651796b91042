"""One request for each thing that SGLang's HTTP interface offers: every one is answered, and the server lives."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from lim_sglang.servers.process import ServerProcess

from .native_client import NativeClient

pytestmark = pytest.mark.e2e

TIMEOUT = 300.0
PROMPT = "The capital of France is"
OBJECT = {
    "type": "object",
    "properties": {"a": {"type": "string", "maxLength": 3}},
    "required": ["a"],
    "additionalProperties": False,
}
SCHEMA = json.dumps(OBJECT)
EBNF = 'root ::= "yes" | "no"'
TAG = {"type": "tag", "begin": "<f>", "content": {"type": "json_schema", "json_schema": OBJECT}, "end": "</f>"}
STRUCTURAL_TAG = {"type": "structural_tag", "format": TAG}
TOOL = {"name": "get_weather", "description": "the weather", "parameters": OBJECT}
TOOLS = [{"type": "function", "function": TOOL}]
USER = [{"role": "user", "content": "Hi"}]

Body = dict[str, Any]
Check = Callable[[Any], None]


def generation(sampling: Body | None = None, **more: Any) -> Body:
    """A greedy request of the native interface for a few tokens."""
    return {"text": PROMPT, "sampling_params": {"max_new_tokens": 4, "temperature": 0} | (sampling or {})} | more


def chat(**more: Any) -> Body:
    return {"model": "default", "max_tokens": 4, "temperature": 0, "messages": USER} | more


def completion(**more: Any) -> Body:
    return {"model": "default", "max_tokens": 4, "temperature": 0, "prompt": PROMPT} | more


def matches(pattern: str) -> Check:
    def check(answer: Any) -> None:
        text = text_of(answer)
        assert re.fullmatch(pattern, text), text

    return check


def text_of(answer: Any) -> str:
    """What was generated, whichever interface it came from."""
    if "text" in answer:
        return str(answer["text"])
    choice = answer["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


def is_object(answer: Any) -> None:
    jsonschema.validate(json.loads(text_of(answer)), OBJECT)


def calls_the_tool(answer: Any) -> None:
    call = answer["choices"][0]["message"]["tool_calls"][0]["function"]
    assert call["name"] == "get_weather"
    jsonschema.validate(json.loads(call["arguments"]), OBJECT)


def generated(count: int) -> Check:
    def check(answer: Any) -> None:
        assert len(answer["output_ids"]) == count

    return check


def holds(*keys: str) -> Check:
    def check(answer: Any) -> None:
        assert [key for key in keys if key not in answer] == [], answer

    return check


def repeats_one_token(answer: Any) -> None:
    assert answer["output_ids"] == [100] * 4


def never_repeats(answer: Any) -> None:
    assert len(set(answer["output_ids"])) == len(answer["output_ids"]) == 24


def answers(count: int) -> Check:
    def check(answer: Any) -> None:
        assert len(answer["choices"] if "choices" in answer else answer) == count

    return check


def has_logprobs(answer: Any) -> None:
    meta = answer["meta_info"]
    assert len(meta["output_token_logprobs"]) == 4
    assert [len(top) for top in meta["output_top_logprobs"]] == [3] * 4
    assert [token for _, token, _ in meta["output_token_ids_logprobs"][0]] == [1, 2]
    assert len(meta["input_token_logprobs"]) == meta["prompt_tokens"]


OBJECT_TEXT = {"max_new_tokens": 48, "json_schema": SCHEMA}
OBJECT_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": OBJECT}}
ANY = {"text"}
SERVED: dict[str, tuple[str, Body, Check]] = {
    "regex": ("/generate", generation({"max_new_tokens": 8, "regex": "[0-9]{1,5}"}), matches("[0-9]{1,5}")),
    "ebnf": ("/generate", generation({"max_new_tokens": 8, "ebnf": EBNF}), matches("yes|no")),
    "json schema": ("/generate", generation(OBJECT_TEXT), is_object),
    "structural tag": (
        "/generate",
        generation({"max_new_tokens": 48, "structural_tag": json.dumps(STRUCTURAL_TAG)}),
        matches(r"<f>\{.*\}</f>"),
    ),
    "regex with logprobs, a bias and penalties": (
        "/generate",
        generation(
            {"max_new_tokens": 8, "regex": "[0-9]{3}", "logit_bias": {"100": 5}, "frequency_penalty": 1},
            return_logprob=True,
            top_logprobs_num=2,
        ),
        matches("[0-9]{3}"),
    ),
    "regex beside a free request": (
        "/generate",
        {
            "text": [PROMPT, PROMPT],
            "sampling_params": [{"max_new_tokens": 8, "regex": "[0-9]{3}"}, {"max_new_tokens": 8}],
        },
        lambda both: matches("[0-9]{3}")(both[0]),
    ),
    "n regexes": (
        "/generate",
        generation({"max_new_tokens": 8, "regex": "[0-9]{3}", "n": 2, "temperature": 1}),
        lambda both: [matches("[0-9]{3}")(one) for one in both][0],
    ),
    "token ids": ("/generate", {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 2}}, generated(2)),
    "several prompts": ("/generate", generation(text=["a", "b"]), answers(2)),
    "n": ("/generate", generation({"n": 3, "temperature": 1}), answers(3)),
    "logprobs": (
        "/generate",
        generation(return_logprob=True, top_logprobs_num=3, token_ids_logprob=[1, 2], logprob_start_len=0),
        has_logprobs,
    ),
    "penalties": (
        "/generate",
        generation({"max_new_tokens": 24, "frequency_penalty": 2, "presence_penalty": 2, "repetition_penalty": 2}),
        never_repeats,
    ),
    "repetition penalty": ("/generate", generation({"repetition_penalty": 1.5}), generated(4)),
    "logit bias": ("/generate", generation({"logit_bias": {"100": 100}}), repeats_one_token),
    "min_new_tokens": (
        "/generate",
        generation({"min_new_tokens": 4, "stop_token_ids": [5], "logit_bias": {"5": 100, "2": 100}}),
        generated(4),
    ),
    "top_k, top_p and min_p": (
        "/generate",
        generation({"temperature": 1, "top_k": 20, "top_p": 0.9, "min_p": 0.05}),
        generated(4),
    ),
    "seed": ("/generate", generation({"temperature": 1, "sampling_seed": 3, "top_k": 20}), generated(4)),
    "stop text": ("/generate", generation({"max_new_tokens": 8, "stop": [" ", "\n"]}), holds("text")),
    "stop regex": ("/generate", generation({"max_new_tokens": 8, "stop_regex": "[a-z]"}), holds("text")),
    "stop token": (
        "/generate",
        generation({"logit_bias": {"5": 100}, "stop_token_ids": [5]}),
        generated(1),
    ),
    "custom parameters": ("/generate", generation({"custom_params": {"a": 1}}), generated(4)),
    "priority": ("/generate", generation(priority=3), generated(4)),
    "nothing to generate": ("/generate", generation({"max_new_tokens": 0}), holds("meta_info")),
    "chat": ("/v1/chat/completions", chat(), answers(1)),
    "chat with a schema": (
        "/v1/chat/completions",
        chat(max_tokens=48, response_format=OBJECT_FORMAT),
        is_object,
    ),
    "chat with any object": (
        "/v1/chat/completions",
        chat(max_tokens=8, response_format={"type": "json_object"}),
        lambda answer: matches(r"(?s)\s*\{.*")(answer),
    ),
    "chat with a regex": ("/v1/chat/completions", chat(max_tokens=8, regex="[0-9]{3}"), matches("[0-9]{3}")),
    "chat with a tool that must be called": (
        "/v1/chat/completions",
        chat(max_tokens=96, tools=TOOLS, tool_choice="required"),
        calls_the_tool,
    ),
    "chat with a tool that is named": (
        "/v1/chat/completions",
        chat(max_tokens=96, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "get_weather"}}),
        calls_the_tool,
    ),
    "chat with a tool that may be called": ("/v1/chat/completions", chat(tools=TOOLS), answers(1)),
    "chat, n": ("/v1/chat/completions", chat(n=2, temperature=1), answers(2)),
    "chat with logprobs": ("/v1/chat/completions", chat(logprobs=True, top_logprobs=2), answers(1)),
    "chat with a bias and penalties": (
        "/v1/chat/completions",
        chat(logit_bias={"100": 10}, frequency_penalty=1, presence_penalty=1, seed=1),
        answers(1),
    ),
    "chat with reasoning": ("/v1/chat/completions", chat(reasoning_effort="low", separate_reasoning=True), answers(1)),
    "completion": ("/v1/completions", completion(echo=True, logprobs=2), answers(1)),
    "completion of several prompts": ("/v1/completions", completion(prompt=["a", "b"]), answers(2)),
    "completion of token ids": ("/v1/completions", completion(prompt=[1, 2, 3]), answers(1)),
    "completion with a schema": ("/v1/completions", completion(max_tokens=48, json_schema=SCHEMA), is_object),
    "scores": (
        "/v1/score",
        {"model": "default", "query": "I", "items": ["a", "b"], "label_token_ids": [5, 6]},
        holds("scores"),
    ),
    "Anthropic messages": ("/v1/messages", {"model": "default", "max_tokens": 4, "messages": USER}, holds("content")),
    "Anthropic count": ("/v1/messages/count_tokens", {"model": "default", "messages": USER}, holds("input_tokens")),
    "Ollama chat": (
        "/api/chat",
        {"model": "default", "messages": USER, "stream": False, "options": {"num_predict": 4}},
        holds("message"),
    ),
    "tokenize": ("/tokenize", {"model": "default", "prompt": "Hi"}, holds("tokens")),
    "detokenize": ("/detokenize", {"model": "default", "tokens": [1, 2]}, holds("text")),
    "weights by name": ("/get_weights_by_name", {"name": "model.norm.weight"}, lambda values: values[0]),
}


@pytest.fixture(scope="module")
def ask(lim_server: ServerProcess) -> Iterator[Callable[..., httpx.Response]]:
    """Sends one request; a server that dies of it is told by its own last words."""
    with httpx.Client(base_url=lim_server.url, timeout=TIMEOUT) as client:

        def send(method: str, path: str, **content: Any) -> httpx.Response:
            try:
                return client.request(method, path, **content)
            except httpx.HTTPError:
                lim_server.check_running(wait=30)
                raise

        yield send


@pytest.mark.parametrize(("path", "body", "check"), SERVED.values(), ids=SERVED)
def test_it_is_served(ask: Callable[..., httpx.Response], path: str, body: Body, check: Check) -> None:
    response = ask("POST", path, json=body)
    assert response.status_code == 200, response.text
    check(response.json())
