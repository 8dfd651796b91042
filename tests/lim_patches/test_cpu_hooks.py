"""What SGLang cannot do on a CPU and our host can: each hook against its definition, with SGLang's own classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import lim_patches.patch
from lim_patches.cpu import grammar_mask, last_slot, scaling_penalties
from lim_patches.ledger import PATCHES

from .conftest import Change

VOCABULARY = 100


@pytest.fixture
def on_cpu_host(hooked: Change) -> Iterator[None]:
    with hooked([patch for patch in PATCHES if patch.only_on_cpu_host]):
        yield


def test_hooks_of_the_cpu_host_are_not_wanted_where_a_gpu_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [*grammar_mask.PATCHES, scaling_penalties.PATCH, last_slot.PATCH]
    assert [patch for patch in PATCHES if patch.only_on_cpu_host] == ours
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
