"""Which layers of a model drafts may copy, of a model put together from SGLang's layers by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.linear import ReplicatedLinear
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.quantization.unquant import UnquantizedEmbeddingMethod
from sglang.srt.layers.radix_attention import RadixAttention
from torch import nn

from lim_sglang.host import compat
from lim_sglang.speculative import linears

SIZE = 8


class Head(nn.Module):
    """An embedding that is the head as well."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(10, SIZE))
        self.quant_method: Any = UnquantizedEmbeddingMethod()


def block(number: int, **more: nn.Module) -> nn.Module:
    attention = nn.ModuleDict({"qkv": ReplicatedLinear(SIZE, SIZE), "attn": RadixAttention(2, 4, 0.5, 2, number)})
    return nn.ModuleDict({"self_attn": attention, "mlp": ReplicatedLinear(SIZE, SIZE)} | more)


def runner(model: nn.Module, **options: Any) -> Any:
    args = {"cpu_offload_gb": 0, "enable_fp32_lm_head": False} | options
    return SimpleNamespace(model=model, device="cpu", server_args=SimpleNamespace(**args))


@pytest.fixture(autouse=True)
def options_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "effective_args", lambda args: args)


@pytest.fixture
def model() -> nn.Module:
    """A decoder of two layers, its head, and a vision tower with a linear layer of its own."""
    made = nn.Module()
    made.model = nn.ModuleDict({"layers": nn.ModuleList([block(0), block(1)]), "embed_tokens": Head()})
    made.lm_head = made.model["embed_tokens"]
    made.visual = nn.ModuleDict({"blocks": nn.ModuleList([ReplicatedLinear(SIZE, SIZE)])})
    return made


def test_the_decoders_layers_and_the_head_are_copied(model: Any) -> None:
    found = linears.copyable_layers(runner(model))
    blocks = model.model["layers"]
    expected = [each for one in blocks for each in (one["self_attn"]["qkv"], one["mlp"])]
    assert [id(each) for each in found] == [id(each) for each in [*expected, model.lm_head]]


def test_a_head_that_multiplies_in_float32_or_by_a_method_of_its_own_stays(model: Any) -> None:
    assert len(linears.copyable_layers(runner(model, enable_fp32_lm_head=True))) == 4
    model.lm_head.quant_method = object()
    assert len(linears.copyable_layers(runner(model))) == 4


def test_what_cannot_be_copied_says_why(model: Any) -> None:
    blocks = model.model["layers"]
    with pytest.raises(ValueError, match="offloaded"):
        linears.copyable_layers(runner(model, cpu_offload_gb=4))
    blocks[1]["gate"] = nn.Module()
    blocks[1]["gate"].dual_gemm = SimpleNamespace(mode=None)
    linears.copyable_layers(runner(model))
    blocks[1]["gate"].dual_gemm.mode = "unquantised"
    with pytest.raises(ValueError, match="two at a time"):
        linears.copyable_layers(runner(model))
    for spoil in (
        lambda layer: setattr(layer, "quant_method", SimpleNamespace()),
        lambda layer: setattr(layer, "use_intel_amx_backend", True),
    ):
        blocks[1]["mlp"] = ReplicatedLinear(SIZE, SIZE)
        spoil(blocks[1]["mlp"])
        with pytest.raises(ValueError, match="quantised or packed already"):
            linears.copyable_layers(runner(model))
    blocks[1]["mlp"] = FusedMoE.__new__(FusedMoE)
    nn.Module.__init__(blocks[1]["mlp"])
    with pytest.raises(ValueError, match="experts"):
        linears.copyable_layers(runner(model))
