"""What clients of a soak do: the same for the same seed and number, of every kind, within the server's limits."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from bench.soak.traffic import KINDS, Limits, Maker

LIMITS = Limits(prompt=300, output=20, context=1000)
MANY = 3000


@pytest.fixture(scope="module")
def maker() -> Maker:
    return Maker(7, LIMITS)


def test_an_operation_can_be_made_again(maker: Maker) -> None:
    assert [Maker(7, LIMITS).operation(number) for number in (5, 999, 5)] == [maker.operation(n) for n in (5, 999, 5)]
    assert Maker(8, LIMITS).operation(5) != maker.operation(5)


def test_every_kind_comes_as_often_as_it_should(maker: Maker) -> None:
    found = Counter(maker.operation(number).kind for number in range(MANY))
    assert sum(share for share, _ in KINDS.values()) == 100
    for kind, (share, _) in KINDS.items():
        assert found[kind] / MANY == pytest.approx(share / 100, abs=0.02), kind


def test_what_may_be_sent_fits_and_what_may_not_does_not(maker: Maker) -> None:
    for operation in map(maker.operation, range(MANY)):
        if operation.kind == "malformed":
            with pytest.raises(json.JSONDecodeError):
                json.loads(operation.content)
        elif operation.kind == "oversized":
            assert len(operation.body["input_ids"]) >= LIMITS.context
        elif operation.ending != "refusal":
            body = operation.body
            assert 1 <= len(body["input_ids"]) <= LIMITS.prompt
            assert 1 <= body["sampling_params"]["max_new_tokens"] <= LIMITS.output


def test_an_abort_names_one_request_only(maker: Maker) -> None:
    """SGLang aborts every request whose rid begins with the one it is given."""
    rids = [operation.body["rid"] for operation in map(maker.operation, range(MANY)) if operation.aborts]
    assert len(rids) > MANY / 50
    assert all(sum(other.startswith(rid) for other in rids) == 1 for rid in rids)


def test_some_prompts_share_a_beginning(maker: Maker) -> None:
    prompts = [o.body["input_ids"] for o in map(maker.operation, range(MANY)) if o.ending == "answer"]
    beginnings = Counter(tuple(prompt[:5]) for prompt in prompts if len(prompt) > 20)
    assert sum(count for _, count in beginnings.most_common(6)) > len(prompts) / 4


def test_only_greedy_answers_are_compared(maker: Maker) -> None:
    compared = [o for o in map(maker.operation, range(MANY)) if o.compared]
    assert len(compared) > MANY / 3
    assert all(o.body["sampling_params"]["temperature"] == 0 and o.answers == 1 for o in compared)
