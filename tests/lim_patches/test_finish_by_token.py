"""Where a request of the lossless mode ends: as by steps of one token, and before slots run out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lim_patches.lossless import drop_behind_end, finish_by_token, room_for_rounds
from lim_sglang.tools.servers.embedded_model import ensure_model

from .conftest import switched

EOS, STOP, THINK_END = 2, 5, 9
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


def ended(req: Any) -> tuple[Any, list[int], int]:
    """How a request ended, its output, and how many tokens of that were counted as reasoning."""
    return (
        req.finished_reason and req.finished_reason.to_json(),
        list(req.output_ids_through_stop),
        req.reasoning_tokens,
    )


def think(req: Any, tokens: Sequence[int]) -> None:
    """Count reasoning as SGLang does it, before it looks for an end."""
    newer = "think_end_ids" in inspect.signature(req.update_reasoning_tokens).parameters
    req.update_reasoning_tokens(list(tokens), [THINK_END] if newer else THINK_END)


def by_one(req: Any, tokens: Sequence[int]) -> tuple[Any, list[int], int]:
    for token in tokens:
        if not req.finished():
            req.output_ids.append(token)
            think(req, [token])
            req.update_finish_state()
    return ended(req)


def by_rounds(req: Any, rounds: Sequence[Sequence[int]]) -> tuple[Any, list[int], int]:
    kept = 0
    for tokens in rounds:
        if not req.finished():
            req.output_ids.extend(tokens)
            kept += len(tokens)
            think(req, tokens)
            finish_by_token.token_by_token(type(req).update_finish_state, req, len(tokens))
    assert len(req.output_ids) == kept, "slots of the tokens behind the end are freed by their number"
    found = ended(req)
    drop_behind_end.drop_behind_end(None, None, [req])
    assert not req.finished() or list(req.output_ids) == found[1], "as the end has been told"
    return found


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
    reason, output, _ = by_rounds(req, [[7, 8, EOS]])
    assert reason["type"] == "abort"
    assert output == [7, 8, EOS]


@pytest.mark.parametrize(
    ("page", "prompt", "most"), [(1, 33, 116), (16, 33, 80), (16, 48, 80), (16, 49, 64), (16, 150, 1)]
)
def test_room_is_left_in_whole_pages(
    make: Make, monkeypatch: pytest.MonkeyPatch, page: int, prompt: int, most: int
) -> None:
    """Of 160 slots, beside the prompt, for two rounds of five tokens and one page more."""
    from sglang.srt.mem_cache import allocation_sizing

    monkeypatch.setattr(allocation_sizing, "get_alloc_reserve_per_decode", lambda: 10)
    for asked in (1000, most, 1):
        req = make(asked, min_new_tokens=asked)
        req.origin_input_ids = [1] * prompt
        room_for_rounds.leave_room(None, SimpleNamespace(page_size=page, max_total_num_tokens=160), req)
        params = req.sampling_params
        assert params.max_new_tokens == params.min_new_tokens == min(asked, most)
