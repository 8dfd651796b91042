"""A round of several tokens ends a request where steps of one token would have, on SGLang's own requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lim_patches.lossless import finish_by_token
from lim_sglang.tools.servers.embedded_model import ensure_model

from .conftest import switched

EOS, STOP = 2, 5
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def make() -> Iterator[Make]:
    """Requests, judged one token at a time by SGLang's own method."""
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams
    from sglang.srt.utils.hf_transformers_utils import get_tokenizer

    tokenizer = get_tokenizer(str(ensure_model()))

    def request(most: int, **sampling: Any) -> Any:
        params = SamplingParams(max_new_tokens=most, stop_token_ids=[STOP], **sampling)
        params.normalize(tokenizer)
        req = Req("r", "", [1], params, eos_token_ids={EOS}, vocab_size=49152)
        req.tokenizer = tokenizer
        return req

    with switched([finish_by_token.PATCH], on=False):
        yield request


def ended(req: Any) -> tuple[Any, list[int]]:
    return req.finished_reason and req.finished_reason.to_json(), list(req.output_ids_through_stop)


def by_one(req: Any, tokens: Sequence[int]) -> tuple[Any, list[int]]:
    for token in tokens:
        if not req.finished():
            req.output_ids.append(token)
            req.update_finish_state()
    return ended(req)


def by_rounds(req: Any, rounds: Sequence[Sequence[int]]) -> tuple[Any, list[int]]:
    kept = 0
    for tokens in rounds:
        if not req.finished():
            req.output_ids.extend(tokens)
            kept += len(tokens)
            finish_by_token.token_by_token(type(req).update_finish_state, req, len(tokens))
    assert len(req.output_ids) == kept, "slots of the tokens behind the end are freed by their number"
    return ended(req)


ROUNDS = st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=7), min_size=1, max_size=4)


@given(rounds=ROUNDS, most=st.integers(1, 20), ignore_eos=st.booleans())
def test_rounds_end_as_single_tokens_do(make: Make, rounds: list[list[int]], most: int, ignore_eos: bool) -> None:
    flat = [token for tokens in rounds for token in tokens]
    expected = by_one(make(most, ignore_eos=ignore_eos), flat)
    assert by_rounds(make(most, ignore_eos=ignore_eos), rounds) == expected


def test_a_stop_string_behind_an_eos_is_not_reached(make: Make) -> None:
    tokenizer = make(1).tokenizer
    stop = tokenizer.encode(" stop", add_special_tokens=False)
    for tokens, kept in (([7, EOS, *stop, 8], [7, EOS]), ([7, *stop, 8, EOS], [7, *stop])):
        found = by_rounds(make(30, stop=" stop"), [tokens])
        assert found == by_one(make(30, stop=" stop"), tokens)
        assert found[1] == kept


def test_an_abort_ends_it_at_once(make: Make) -> None:
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    req = make(10)
    req.to_finish = FINISH_ABORT("gone")
    reason, output = by_rounds(req, [[7, 8, EOS]])
    assert reason["type"] == "abort"
    assert output == [7, 8, EOS]
