"""A test per row of the table: which sampling parameters let a request accept drafts."""

from __future__ import annotations

from typing import Any

import pytest

from lim_sglang.speculative.sampling import may_draft

DRAFT: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature": {"temperature": 0.7},
    "top-p": {"top_p": 0.8},
    "top-k": {"top_k": 20},
    "min-p": {"min_p": 0.1},
    "logit bias": {"logit_bias": {"7": 3.0}},
    "seed": {"sampling_seed": 5},
    "stop strings": {"stop": ["\n"]},
    "several answers": {"n": 3},
}
NO_DRAFT: dict[str, dict[str, Any]] = {
    "frequency penalty": {"frequency_penalty": 0.5},
    "presence penalty": {"presence_penalty": -0.5},
    "repetition penalty": {"repetition_penalty": 1.1},
    "minimum length": {"min_new_tokens": 3},
}


def request(**sampling: Any) -> Any:
    """SGLang's own request."""
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    return Req("rid", "text", [1, 2, 3], SamplingParams(**sampling))


@pytest.mark.parametrize("sampling", DRAFT.values(), ids=DRAFT)
def test_may_draft(sampling: dict[str, Any]) -> None:
    assert may_draft(request(**sampling))


@pytest.mark.parametrize("sampling", NO_DRAFT.values(), ids=NO_DRAFT)
def test_may_not_draft(sampling: dict[str, Any]) -> None:
    assert not may_draft(request(**sampling))


def test_a_minimum_length_ends() -> None:
    req = request(min_new_tokens=3)
    req.output_ids.extend([5, 6])
    assert not may_draft(req)
    req.output_ids.append(7)
    assert may_draft(req)


def test_a_grammar_and_a_custom_processor_may_not_draft() -> None:
    req = request()
    req.grammar = object()
    assert not may_draft(req)
    req = request()
    req.custom_logit_processor = "pickled"
    assert not may_draft(req)
