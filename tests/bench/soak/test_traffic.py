"""What clients of a soak do: the same for the same seed and number, of every kind, within the server's limits."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from bench.soak.traffic import ADAPTED, KINDS, Limits, Maker

LIMITS = Limits(prompt=300, output=20, context=1000)
MAKER = Maker(7, LIMITS)
OPERATIONS = [MAKER.operation(number) for number in range(3000)]


def test_an_operation_can_be_made_again() -> None:
    assert [Maker(7, LIMITS).operation(number) for number in (5, 999)] == [OPERATIONS[5], OPERATIONS[999]]
    assert Maker(8, LIMITS).operation(5) != OPERATIONS[5]


def test_every_kind_comes_as_often_as_it_should() -> None:
    found = Counter(operation.kind for operation in OPERATIONS)
    shares = {kind: 100 * count / len(OPERATIONS) for kind, count in found.items()}
    assert shares == pytest.approx(KINDS, abs=2)


def test_what_may_be_sent_fits_and_what_may_not_does_not() -> None:
    for operation in OPERATIONS:
        if operation.kind == "malformed":
            with pytest.raises(json.JSONDecodeError):
                json.loads(operation.content)
        elif operation.kind == "oversized":
            assert len(operation.body["input_ids"]) >= LIMITS.context
        elif operation.ending != "refusal":
            body = operation.body
            assert 1 <= len(body["input_ids"]) <= LIMITS.prompt
            assert 1 <= body["sampling_params"]["max_new_tokens"] <= LIMITS.output


def test_an_abort_names_one_request_only() -> None:
    """SGLang aborts every request whose rid begins with the one it is given."""
    rids = [operation.body["rid"] for operation in OPERATIONS if operation.aborts]
    assert len(rids) > len(OPERATIONS) / 50
    assert all(sum(other.startswith(rid) for other in rids) == 1 for rid in rids)


def test_some_prompts_share_a_beginning() -> None:
    prompts = [o.body["input_ids"] for o in OPERATIONS if o.ending == "answer"]
    beginnings = Counter(tuple(prompt[:5]) for prompt in prompts if len(prompt) > 20)
    assert sum(count for _, count in beginnings.most_common(6)) > len(prompts) / 4


def test_only_greedy_answers_are_compared() -> None:
    compared = [o for o in OPERATIONS if o.compared]
    assert len(compared) > len(OPERATIONS) / 3
    assert all(o.body["sampling_params"]["temperature"] == 0 and o.answers == 1 for o in compared)


def test_some_requests_use_the_adapter() -> None:
    maker = Maker(3, Limits(30, 5, 1000, "soak"))
    bodies = [o.body for o in map(maker.operation, range(500)) if o.ending == "answer"]
    assert sum(body.get("lora_path") == "soak" for body in bodies) / len(bodies) == pytest.approx(ADAPTED, abs=0.1)
    assert not any("lora_path" in o.body for o in OPERATIONS if o.ending == "answer")
