"""One request for each thing that SGLang's HTTP interface offers, by what becomes of it."""

import json
from typing import Any

from .http_checks import (
    OBJECT,
    Check,
    answers,
    calls_the_tool,
    each,
    first,
    generated,
    has_logprobs,
    holds,
    is_a_number,
    is_object,
    matches,
    repeats_one_token,
    tires_of_one_token,
)

PROMPT = "The capital of France is"
SCHEMA = json.dumps(OBJECT)
EBNF = 'root ::= "yes" | "no"'
TAG = {"type": "tag", "begin": "<f>", "content": {"type": "regex", "pattern": r"\{[a-z]{1,3}\}"}, "end": "</f>"}
STRUCTURAL_TAG = {"type": "structural_tag", "format": TAG}
TOOL = {"name": "get_weather", "description": "the weather", "parameters": OBJECT}
TOOLS = [{"type": "function", "function": TOOL}]
NAMED_TOOL = {"type": "function", "function": {"name": "get_weather"}}
USER = [{"role": "user", "content": "Hi"}]

Body = dict[str, Any]


def generation(sampling: Body | None = None, **more: Any) -> Body:
    """A greedy request of the native interface for a few tokens."""
    return {"text": PROMPT, "sampling_params": {"max_new_tokens": 4, "temperature": 0} | (sampling or {})} | more


def chat(**more: Any) -> Body:
    return {"model": "default", "max_tokens": 4, "temperature": 0, "messages": USER} | more


def completion(**more: Any) -> Body:
    return {"model": "default", "max_tokens": 4, "temperature": 0, "prompt": PROMPT} | more


SAMPLED = {"max_new_tokens": 4, "temperature": 1, "top_k": 20, "ignore_eos": True}
OBJECT_TEXT = {"max_new_tokens": 48, "json_schema": SCHEMA}
OBJECT_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": OBJECT}}
SERVED: dict[str, tuple[str, Body, Check]] = {
    "regex": ("/generate", generation({"max_new_tokens": 8, "regex": "[0-9]{1,5}"}), matches("[0-9]{1,5}")),
    "ebnf": ("/generate", generation({"max_new_tokens": 8, "ebnf": EBNF}), matches("yes|no")),
    "json schema": ("/generate", generation(OBJECT_TEXT), is_object),
    "structural tag": (
        "/generate",
        generation({"max_new_tokens": 48, "structural_tag": json.dumps(STRUCTURAL_TAG)}),
        matches(r"(?s)<f>\{.*\}</f>"),
    ),
    "regex with spaces beside sampling": (
        "/generate",
        {
            "text": ["The", "The"],
            "sampling_params": [
                {"max_new_tokens": 24, "temperature": 0, "regex": r"[a-z]{2,6} [a-z]{2,6}\."},
                {"max_new_tokens": 24, "temperature": 0.8, "top_p": 0.9},
            ],
        },
        first(matches(r"[a-z]{2,6} [a-z]{2,6}\.")),
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
        first(matches("[0-9]{3}")),
    ),
    "n regexes": (
        "/generate",
        generation({"max_new_tokens": 8, "regex": "[0-9]{3}", "n": 2, "temperature": 1}),
        each(matches("[0-9]{3}")),
    ),
    "token ids": ("/generate", {"input_ids": [1, 2, 3], "sampling_params": SAMPLED}, generated(4)),
    "several prompts": ("/generate", generation(text=["a", "b"]), answers(2)),
    "n": ("/generate", generation({"n": 3, "temperature": 1}), answers(3)),
    "logprobs": (
        "/generate",
        generation(return_logprob=True, top_logprobs_num=3, token_ids_logprob=[1, 2], logprob_start_len=0),
        has_logprobs,
    ),
    "frequency penalty": (
        "/generate",
        generation({"max_new_tokens": 32, "logit_bias": {"100": 40}, "frequency_penalty": 2}),
        tires_of_one_token,
    ),
    "presence penalty": ("/generate", generation({"presence_penalty": 2}), generated(4)),
    "repetition penalty": ("/generate", generation({"repetition_penalty": 1.5}), generated(4)),
    "logit bias": ("/generate", generation({"logit_bias": {"100": 40}}), repeats_one_token),
    "min_new_tokens": (
        "/generate",
        generation({"min_new_tokens": 4, "stop_token_ids": [5], "logit_bias": {"5": 100, "2": 100}}),
        generated(4),
    ),
    "top_k, top_p and min_p": (
        "/generate",
        generation(SAMPLED | {"top_p": 0.9, "min_p": 0.05}),
        generated(4),
    ),
    "seed": ("/generate", generation(SAMPLED | {"sampling_seed": 3}), generated(4)),
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
        matches(r"(?s)\s*\{.*"),
    ),
    "chat with a regex": ("/v1/chat/completions", chat(max_tokens=8, regex="[0-9]{3}"), matches("[0-9]{3}")),
    "chat with a tool that must be called": (
        "/v1/chat/completions",
        chat(max_tokens=96, tools=TOOLS, tool_choice="required", parallel_tool_calls=False),
        calls_the_tool,
    ),
    "chat with a tool that is named": (
        "/v1/chat/completions",
        chat(max_tokens=96, tools=TOOLS, tool_choice=NAMED_TOOL, parallel_tool_calls=False),
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
    "Ollama generation": (
        "/api/generate",
        {"model": "default", "prompt": PROMPT, "stream": False, "options": {"num_predict": 4}},
        holds("response"),
    ),
    "tokenize": ("/tokenize", {"model": "default", "prompt": "Hi"}, holds("tokens")),
    "detokenize": ("/detokenize", {"model": "default", "tokens": [1, 2]}, holds("text")),
    "weights by name": ("/get_weights_by_name", {"name": "model.norm.weight"}, is_a_number),
}


# What SGLang refuses, and below it what SGLang takes and loses its scheduler to, so that our host refuses it.
REFUSED: dict[str, tuple[str, Body]] = {
    "regex that is none": ("/generate", generation({"regex": "[0-9"})),
    "grammar that is none": ("/generate", generation({"ebnf": "root ::="})),
    "schema that is none": ("/generate", generation({"json_schema": "{"})),
    "schema of an unknown type": ("/generate", generation({"json_schema": '{"type": "nonsense"}'})),
    "structural tag that is none": ("/generate", generation({"structural_tag": "{}"})),
    "two grammars": ("/generate", generation({"regex": "a", "ebnf": EBNF})),
    "custom logit processor": ("/generate", generation(custom_logit_processor="x")),
    "hidden states": ("/generate", generation(return_hidden_states=True)),
    "adapter": ("/generate", generation(lora_path="x")),
    "embeddings of a prompt": ("/generate", {"input_embeds": [[0.5] * 576]}),
    "unknown session": ("/generate", generation(session_params={"id": "nope"})),
    "rank that is not there": ("/generate", generation(routed_dp_rank=3)),
    "negative temperature": ("/generate", generation({"temperature": -1})),
    "too many new tokens": ("/generate", generation({"max_new_tokens": 10**8})),
    "too long a prompt": ("/generate", {"input_ids": [5] * 9000}),
    "no prompt": ("/generate", {"sampling_params": {}}),
    "empty prompt": ("/generate", generation(text="")),
    "empty list of tokens": ("/generate", {"input_ids": []}),
    "bias outside the vocabulary": ("/generate", generation({"logit_bias": {"1000000": 1}})),
    "log-probability outside the vocabulary": (
        "/generate",
        generation(return_logprob=True, token_ids_logprob=[10**6]),
    ),
    "chat with an unknown tool": (
        "/v1/chat/completions",
        chat(tools=TOOLS, tool_choice=NAMED_TOOL | {"function": {"name": "nope"}}),
    ),
    "chat with an unknown format": ("/v1/chat/completions", chat(response_format={"type": "xml"})),
    "chat without messages": ("/v1/chat/completions", chat(messages=[])),
    "embeddings": ("/v1/embeddings", {"model": "default", "input": "a"}),
    "encoding": ("/encode", {"text": "a"}),
    "classes": ("/classify", {"text": "a"}),
    "weights that are not there": ("/update_weights_from_disk", {"model_path": "/nope"}),
    "adapter that is not there": ("/load_lora_adapter", {"lora_name": "a", "lora_path": "/nope"}),
    "session that is not open": ("/close_session", {}),
    "schema that is no text": ("/generate", generation({"json_schema": OBJECT})),
    "grammar that is no text": ("/generate", generation({"ebnf": ["a"]})),
    "half a token": ("/generate", generation({"max_new_tokens": 2.5})),
    "bias that is no number": ("/generate", generation({"logit_bias": {"5": "x"}})),
    "bias beyond float32": ("/generate", generation({"temperature": 1, "logit_bias": {"5": 1e39}})),
    "top_k beyond int32": ("/generate", generation({"temperature": 1, "top_k": 2**40})),
    "stop token outside the vocabulary": ("/generate", generation({"stop_token_ids": [-1], "min_new_tokens": 2})),
    "SGLang's own mark": ("/generate", generation({"is_normalized": True})),
    "token outside the vocabulary": ("/generate", {"input_ids": [1, 49152]}),
    "negative token": ("/generate", {"input_ids": [1, -1]}),
    "prompt without a token": ("/generate", {"input_ids": [[]]}),
    "completion of an unknown token": ("/v1/completions", completion(prompt=[10**6])),
    "more log-probabilities than tokens": ("/generate", generation(return_logprob=True, top_logprobs_num=100_000)),
    "fewer log-probabilities than none": ("/generate", generation(return_logprob=True, top_logprobs_num=-3)),
    "log-probabilities before the prompt": ("/generate", generation(return_logprob=True, logprob_start_len=-5)),
    "embeddings by position": ("/generate", generation(positional_embed_overrides={"a": 1})),
}
STREAMED: dict[str, tuple[str, Body]] = {
    "generate": ("/generate", generation({"max_new_tokens": 8, "regex": "[0-9]{3}"}, stream=True)),
    "chat": ("/v1/chat/completions", chat(max_tokens=48, response_format=OBJECT_FORMAT, stream=True)),
    "chat with a tool": ("/v1/chat/completions", chat(max_tokens=96, tools=TOOLS, tool_choice="required", stream=True)),
    "completion": ("/v1/completions", completion(stream=True)),
}
PAGES = (
    "/health",
    "/health_generate",
    "/model_info",
    "/server_info",
    "/v1/loads",
    "/v1/models",
    "/v1/models/default",
    "/hicache/storage-backend",
    "/metrics",
    "/nope",
)
# Whatever the answer, it comes.
ADMINISTERED: dict[str, tuple[str, Body]] = {
    "sessions": ("/open_session", {"capacity_of_str_len": 1000}),
    "requests that are not there": ("/abort_request", {"rid": "nope"}),
    "all requests": ("/abort_request", {"rid": "", "abort_all": True}),
    "logging": ("/configure_logging", {"log_requests": False}),
    "internal state": ("/set_internal_state", {"server_args": {}}),
    "collecting garbage": ("/freeze_gc", {}),
    "weights of another process": ("/update_weights_from_tensor", {"serialized_named_tensors": ["x"]}),
    "adapters": ("/unload_lora_adapter", {"lora_name": "a"}),
    "tool calls of a text": ("/parse_function_call", {"text": "a", "tools": TOOLS, "tool_call_parser": "qwen25"}),
    "reasoning of a text": ("/separate_reasoning", {"text": "a", "reasoning_parser": "qwen3"}),
    "reranking": ("/v1/rerank", {"query": "a", "documents": ["b"]}),
    "responses": ("/v1/responses", {"model": "default", "input": "Hi", "max_output_tokens": 4}),
    "Ollama chat": (
        "/api/chat",
        {"model": "default", "messages": USER, "stream": False, "options": {"num_predict": 4}},
    ),
    "audio": ("/v1/audio/transcriptions", {}),
    "an image for a model of texts": ("/generate", generation(image_data="/nope.png")),
    "an unknown parameter": ("/generate", generation({"foo": 1})),
    "nothing": ("/generate", {}),
    "an array": ("/generate", {"text": []}),
}
