"""Copies in place of layers' weights: only inside of a block, made anew when told, each called in every step."""

from __future__ import annotations

import logging
import re
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.quantization.unquant import UnquantizedEmbeddingMethod, UnquantizedLinearMethod
from torch import Tensor, nn

from lim_kernels.linear.reference import quantize
from lim_sglang.host.refusals import UnsupportedError
from lim_sglang.speculative import draft_weights, linears
from lim_sglang.speculative.draft_weights import DraftWeights, make_draft_weights
from lim_sglang.speculative.forward import StepKind


class Layer(nn.Module):
    """What SGLang's layers do with their linear method."""

    def __init__(self, n: int = 6, k: int = 8, method: Any = UnquantizedLinearMethod) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n, k), requires_grad=False)
        self.quant_method = method()

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        product: Tensor = self.quant_method.apply(self, x, bias)
        return product


@pytest.fixture
def layers() -> list[Layer]:
    torch.manual_seed(0)
    return [Layer(), Layer(9_000, 3), Layer(method=UnquantizedEmbeddingMethod)]


@pytest.fixture
def weights(layers: list[Layer]) -> DraftWeights:
    made = DraftWeights(layers)
    made.refresh()
    return made


def test_layers_multiply_by_copies_inside_of_the_block_only(layers: list[Layer], weights: DraftWeights) -> None:
    for layer in layers:
        x, bias = torch.randn(2, 4, layer.weight.shape[1]), torch.randn(len(layer.weight))
        own = layer(x, bias)
        with weights.swap_in():
            copied = layer(x, bias)
        expected = x @ quantize(layer.weight).dequantize().T + bias
        torch.testing.assert_close(copied, expected)
        assert not torch.equal(copied, own)
        assert torch.equal(layer(x, bias), own)


def test_an_exception_in_a_draft_leaves_the_model_as_it_was(layers: list[Layer], weights: DraftWeights) -> None:
    methods = [layer.quant_method for layer in layers]
    runner = SimpleNamespace(attn_backend="dense", decode_cuda_graph_runner=None)
    steps: Any = StepKind(runner, "lim", weights=weights)  # type: ignore[arg-type]
    with steps.swap_in():
        assert not any(layer.quant_method is method for layer, method in zip(layers, methods, strict=True))
    with pytest.raises(RuntimeError, match="out of memory"), steps.swap_in():
        raise RuntimeError("out of memory")
    assert all(layer.quant_method is method for layer, method in zip(layers, methods, strict=True))
    assert runner.attn_backend == "dense"


def test_a_head_that_is_the_embedding_looks_up_its_own_rows(layers: list[Layer], weights: DraftWeights) -> None:
    with weights.swap_in():
        rows = layers[2].quant_method.embedding(layers[2], torch.tensor([3, 1]))
    assert torch.equal(rows, layers[2].weight[[3, 1]])


def test_copies_follow_the_weights_once_they_are_told(layers: list[Layer], weights: DraftWeights) -> None:
    """In place: graphs hold the addresses."""
    addresses = [copy.weight[0].data_ptr() for copy in weights.copies]
    before = weights.copies[0].weight[0].clone()
    layers[0].weight.data.mul_(-3)
    weights.refresh()
    assert torch.equal(weights.copies[0].weight[0], before)
    weights.mark_stale()
    weights.refresh()
    torch.testing.assert_close(weights.copies[0].weight[0], -3 * before)
    assert [copy.weight[0].data_ptr() for copy in weights.copies] == addresses
    assert weights.report()["fills"] == 2


def test_copies_are_no_parameters_of_the_model(layers: list[Layer], weights: DraftWeights) -> None:
    model = nn.ModuleList(layers)
    with weights.swap_in():
        assert [name for name, _ in model.named_parameters()] == ["0.weight", "1.weight", "2.weight"]
        assert list(model.state_dict()) == ["0.weight", "1.weight", "2.weight"]


MISSED = r"of its 3 linear layers .* --lim-draft-weights model"


@pytest.mark.parametrize("called", [[1, 0, 1], [1, 2, 1], [0, 0, 0]])
def test_a_model_that_goes_around_a_copy_is_told(
    layers: list[Layer], weights: DraftWeights, called: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    def step(times: list[int]) -> None:
        with weights.swap_in():
            for layer, number in zip(layers, times, strict=True):
                for _ in range(number):
                    layer(torch.randn(1, layer.weight.shape[1]))

    step([3, 3, 3])
    weights.check_calls("int8")
    for asked, outcome in (("auto", nullcontext()), ("int8", pytest.raises(UnsupportedError, match=MISSED))):
        step(called)
        caplog.clear()
        with outcome:
            weights.check_calls(asked)
        assert len(re.findall(MISSED, caplog.text)) == (asked == "auto")


GIB = 1 << 30


def runner_of(layers: list[Layer], device: str, monkeypatch: pytest.MonkeyPatch, pool: int = 200 * GIB) -> Any:
    monkeypatch.setattr(linears, "copyable_layers", lambda _runner: layers)
    monkeypatch.setattr(linears, "pool_bytes", lambda _runner: pool)
    monkeypatch.setattr(linears, "region_of_weights", lambda _runner: torch.no_grad())
    return SimpleNamespace(device=device)


def test_auto_copies_nothing_on_a_cpu_and_int8_does(layers: list[Layer], monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_of(layers, "cpu", monkeypatch)
    assert make_draft_weights(runner, "auto") is None
    assert make_draft_weights(runner, "model") is None
    made = make_draft_weights(runner, "int8")
    assert made is not None
    assert made.report() == {"format": "int8", "layers": 3, "mib": 0, "fills": 0}


@pytest.mark.parametrize(
    ("pool", "own_ms", "reason"), [(1200, 1.3, ""), (1000, 1.3, "they may take 10%"), (1200, 1.2, "1.20 times")]
)
def test_auto_copies_where_it_pays_and_fits(
    layers: list[Layer], pool: int, own_ms: float, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """By a pool's bytes against 27,096 copied ones a tenth of it, and by times of a step's products."""
    times = [own_ms, 1.0]
    monkeypatch.setattr(draft_weights, "_graph_ms", lambda _run: times.pop(0))
    runner = runner_of(layers, "cuda", monkeypatch, pool * sum(layer.weight.numel() for layer in layers) // 110)
    with caplog.at_level(logging.INFO):
        made = make_draft_weights(runner, "auto")
    assert (made is None) == bool(reason)
    assert reason in caplog.text
    assert ("own weights" in caplog.text) == bool(reason)


@pytest.mark.parametrize("asked", ["auto", "int8"])
def test_what_cannot_be_copied_is_told_only_where_it_was_asked_for(
    asked: str, monkeypatch: pytest.MonkeyPatch, layers: list[Layer]
) -> None:
    runner = runner_of(layers, "cuda", monkeypatch)

    def refuse(_runner: Any) -> Any:
        raise ValueError("its weights are quantised or packed already")

    monkeypatch.setattr(linears, "copyable_layers", refuse)
    if asked == "auto":
        assert make_draft_weights(runner, asked) is None
        return
    with pytest.raises(
        UnsupportedError, match=r"^draft_weights=int8 .* packed already; use --lim-draft-weights model$"
    ):
        make_draft_weights(runner, asked)


def test_copies_that_leave_no_room_for_the_cache_are_refused(
    layers: list[Layer], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = runner_of(layers, "cuda", monkeypatch, pool=1000)
    with pytest.raises(UnsupportedError, match=r"int8 copies take 0\.0 GiB, and the KV cache has 0\.0 GiB; use"):
        make_draft_weights(runner, "int8")
