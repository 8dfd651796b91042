"""What an answer of SGLang's HTTP interface has to be, whichever of its protocols it came by."""

import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema

OBJECT = {
    "type": "object",
    "properties": {"a": {"type": "string", "maxLength": 3}},
    "required": ["a"],
    "additionalProperties": False,
}
Check = Callable[[Any], None]


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
    """Without a parser of tool calls the server leaves them in the text."""
    (call,) = json.loads(text_of(answer))
    assert call["name"] == "get_weather"
    jsonschema.validate(call["parameters"], OBJECT)


def generated(count: int) -> Check:
    def check(answer: Any) -> None:
        assert len(answer["output_ids"]) == count

    return check


def holds(*keys: str) -> Check:
    def check(answer: Any) -> None:
        assert [key for key in keys if key not in answer] == [], answer

    return check


def first(check: Check) -> Check:
    return lambda answers: check(answers[0])


def each(check: Check) -> Check:
    def check_all(answers: Any) -> None:
        assert len(answers) == 2
        for answer in answers:
            check(answer)

    return check_all


def is_a_number(answer: Any) -> None:
    assert isinstance(answer[0], float)


def repeats_one_token(answer: Any) -> None:
    assert answer["output_ids"] == [100] * 4


def tires_of_one_token(answer: Any) -> None:
    """A penalty of 2 a token outgrows a bias of 40 within 32 tokens."""
    assert answer["output_ids"][:4] == [100] * 4
    assert answer["output_ids"] != [100] * 32


def answers(count: int) -> Check:
    def check(answer: Any) -> None:
        listed = answer["choices"] if isinstance(answer, dict) else answer
        assert len(listed) == count

    return check


def has_logprobs(answer: Any) -> None:
    meta = answer["meta_info"]
    assert len(meta["output_token_logprobs"]) == 4
    assert [len(top) for top in meta["output_top_logprobs"]] == [3] * 4
    assert [token for _, token, _ in meta["output_token_ids_logprobs"][0]] == [1, 2]
    assert len(meta["input_token_logprobs"]) == meta["prompt_tokens"]
