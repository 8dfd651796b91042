"""What SGLang cannot do on a CPU and our host can: each hook against its definition, with SGLang's own classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lim_patches.patch
from lim_patches.cpu import (
    gated_norm,
    grammar_mask,
    last_slot,
    request_values,
    scaling_penalties,
    shared_expert_gate,
)
from lim_patches.ledger import PATCHES

from .conftest import switched

VOCABULARY = 100


@pytest.fixture
def on_cpu_host() -> Iterator[None]:
    with switched([patch for patch in PATCHES if patch.only_on_cpu_host and patch.has_target], on=True):
        yield


def test_hooks_of_the_cpu_host_are_not_wanted_where_a_gpu_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [*grammar_mask.PATCHES, scaling_penalties.PATCH, last_slot.PATCH, *gated_norm.PATCHES]
    ours += [*shared_expert_gate.PATCHES, *request_values.PATCHES]
    assert [patch for patch in PATCHES if patch.only_on_cpu_host] == ours
    ours = [patch for patch in ours if patch.has_target]
    for active in (False, True):
        monkeypatch.setattr(lim_patches.patch, "is_active", lambda active=active: active)
        assert {replace(patch, only_if_loaded="").wanted for patch in ours} == {active}
        assert not replace(ours[0], only_if_loaded="no.such.module").wanted


@pytest.mark.usefixtures("on_cpu_host")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("owner", ["XGrammarGrammar", "XGrammarGrammarBackend"])
def test_a_grammar_masks_on_a_cpu(owner: str, dtype: torch.dtype) -> None:
    """Against the bits, one by one; the second request has no grammar."""
    from sglang.srt.constrained import xgrammar_backend

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, VOCABULARY, generator=generator).to(dtype)
    allowed = torch.rand(2, 128, generator=generator) < 0.3
    allowed[1] = True
    bits = (allowed.view(2, 4, 32).long() << torch.arange(32)).sum(-1)
    vocab_mask = torch.where(bits >= 2**31, bits - 2**32, bits).int()
    expected = logits.masked_fill(~allowed[:, :VOCABULARY], float("-inf"))
    target = getattr(xgrammar_backend, owner)
    target = object.__new__(target) if owner == "XGrammarGrammar" else target
    target.apply_vocab_mask(logits=logits, vocab_mask=vocab_mask)
    assert torch.equal(logits, expected)
    assert expected[0].isinf().any()
    assert not expected[1].isinf().any()


def test_a_mask_on_another_device_is_sglangs() -> None:
    logits, vocab_mask = torch.empty(1, 8, device="meta"), torch.empty(1, 1, dtype=torch.int32, device="meta")
    seen: list[Any] = []
    grammar_mask.mask(lambda *tensors: seen.extend(tensors), logits, vocab_mask)
    assert [id(tensor) for tensor in seen] == [id(logits), id(vocab_mask)]


@pytest.mark.usefixtures("on_cpu_host")
def test_repetition_penalties_compile_nothing() -> None:
    from sglang.srt.sampling import sampling_batch_info

    logits = torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(0))
    penalties = torch.tensor([[1.5], [1.0]]).expand(2, VOCABULARY)
    expected = torch.where(logits < 0, logits * penalties, logits / penalties)
    before = logits.clone()
    with torch.compiler.set_stance("fail_on_recompile"):
        sampling_batch_info.apply_scaling_penalties(logits, penalties)
    assert torch.equal(logits, expected)
    assert not torch.equal(logits[0], before[0])


@pytest.mark.usefixtures("on_cpu_host")
def test_the_last_slot_of_a_page_needs_no_triton() -> None:
    from sglang.srt.mem_cache import allocation

    table = torch.arange(40, dtype=torch.int32).view(4, 10)
    found = allocation.get_last_loc(table, torch.tensor([2, 0, 3]), torch.tensor([5, 0, 10]))
    assert found.tolist() == [24, -1, 39]


REFUSED_SAMPLING = [
    ({"json_schema": {"type": "object"}}, "json_schema={'type': 'object'} is not allowed: Expected `str"),
    ({"max_new_tokens": 2.5}, "max_new_tokens=2.5 is not allowed: Expected `int"),
    ({"logit_bias": {"5": "x"}}, "logit_bias={'5': 'x'} is not allowed: Expected `float`"),
    ({"logit_bias": {"5": float("nan")}}, r"logit_bias\[5\]=nan is not allowed"),
    ({"logit_bias": {"5": 1e39}}, r"logit_bias\[5\]=1e\+39 is not allowed: .* 1e\+30"),
    ({"top_k": 2**31}, "top_k=2147483648 is not allowed: expected at most 2147483647"),
    ({"stop_token_ids": [-1], "min_new_tokens": 1}, "stop_token_ids=-1 is not allowed: expected 0 to 99"),
    ({"stop_token_ids": [100], "min_new_tokens": 1}, "stop_token_ids=100 is not allowed"),
]
EXTREMES = {"logit_bias": {"0": -100, "99": 1e30}, "top_k": 2**31 - 1, "stop_token_ids": [0, 99], "min_new_tokens": 1}
SERVED_SAMPLING: list[dict[str, Any]] = [
    {},
    EXTREMES | {"max_new_tokens": 8, "temperature": 1, "top_p": 1},
    {"regex": "[0-9]", "top_k": -1, "custom_params": {"a": {"b": {"c": [1]}}}},
    {"stop_token_ids": [100]},  # nothing looks them up
]


@pytest.mark.usefixtures("on_cpu_host")
@pytest.mark.parametrize(("values", "message"), REFUSED_SAMPLING)
def test_sampling_values_that_would_end_the_scheduler(values: dict[str, Any], message: str) -> None:
    from sglang.srt.sampling.sampling_params import SamplingParams

    with pytest.raises(ValueError, match=message):
        SamplingParams(**values).verify(VOCABULARY)


@pytest.mark.usefixtures("on_cpu_host")
@pytest.mark.parametrize("values", SERVED_SAMPLING)
def test_sampling_values_that_are_served(values: dict[str, Any]) -> None:
    from sglang.srt.sampling.sampling_params import SamplingParams

    SamplingParams(**values).verify(VOCABULARY)


def request(**fields: Any) -> Any:
    """A request as SGLang's tokenizer manager holds it when it validates it."""
    from sglang.srt.managers.io_struct import GenerateReqInput

    made = GenerateReqInput(text="a", **fields)
    made.normalize_batch_and_arguments()
    return made


LOGPROBS = {"return_logprob": True}
REFUSED_REQUESTS: list[tuple[dict[str, Any], list[int], str]] = [
    (LOGPROBS | {"logprob_start_len": -5}, [0], "logprob_start_len=-5 is not"),
    (LOGPROBS | {"top_logprobs_num": 101}, [0], "top_logprobs_num=101 .* 0 to 100"),
    (LOGPROBS | {"top_logprobs_num": -1}, [0], "top_logprobs_num=-1 is not allowed"),
    ({"positional_embed_overrides": {"a": 1}}, [0], "positional_embed_overrides={'a': 1} is"),
    ({"sampling_params": {"is_normalized": True}}, [0], "is_normalized=True is not allowed"),
    ({}, [0, -1], "input_ids=-1 is not allowed: expected 0 to 99"),
    ({}, [0, 100], "input_ids=100 is not allowed: expected 0 to 99"),
    ({}, [], r"input_ids=\[\] is not allowed: expected at least one token"),
]
SERVED_REQUESTS: list[dict[str, Any]] = [
    {},
    LOGPROBS,
    LOGPROBS | {"top_logprobs_num": 100, "logprob_start_len": 0},
    {"top_logprobs_num": -1, "logprob_start_len": -5},  # nothing looks at them
]
MANAGER = SimpleNamespace(model_config=SimpleNamespace(vocab_size=VOCABULARY))


@pytest.mark.parametrize(("fields", "input_ids", "message"), REFUSED_REQUESTS)
def test_requests_that_would_end_the_scheduler(fields: dict[str, Any], input_ids: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        request_values.check_request(None, MANAGER, request(**fields), input_ids)


@pytest.mark.parametrize("fields", SERVED_REQUESTS)
@pytest.mark.parametrize("input_ids", [None, [0, 99]])
def test_requests_that_are_served(fields: dict[str, Any], input_ids: list[int] | None) -> None:
    request_values.check_request(None, MANAGER, request(**fields), input_ids)
