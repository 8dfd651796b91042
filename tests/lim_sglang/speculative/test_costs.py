"""Costs from times, and the made-up cache; ``tests/e2e/test_lossless_policy.py`` has a server measure itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lim_sglang.config import LimConfig
from lim_sglang.layer_plan import LayerPlan
from lim_sglang.metrics import DecodeMetrics
from lim_sglang.speculative.costs import StepTime, batch_sizes, fill_cache, fit_lines, lengths_of

LAYERS, SELECTS = 6, (2, 4)


def test_batches_up_to_the_most_that_may_run() -> None:
    assert batch_sizes(48, 1 << 20) == [1, 2, 4, 8, 16, 32, 48]
    assert batch_sizes(16, 1 << 20) == [1, 2, 4, 8, 16]
    assert batch_sizes(1, 1 << 20) == [1]
    assert batch_sizes(48, 300) == [1, 2, 4], "there is room for so many only"


def host(context: int, slots: int) -> Any:
    return SimpleNamespace(model_config=SimpleNamespace(context_len=context), max_total_num_tokens=slots)


@pytest.mark.parametrize(("batch", "slots"), [(1, 1 << 20), (8, 100_000), (4, 300)])
def test_lengths_fit(batch: int, slots: int) -> None:
    short, long = lengths_of(host(40_960, slots), batch, 7)
    assert 0 < short < long
    assert long + 7 <= 40_960
    assert batch * (long + 7) <= slots


def test_a_line_goes_through_both_lengths() -> None:
    time = fit_lines([2, 8], [(100, 300), (50, 100)], [[5.0, 7.0], [9.0, 8.0]])
    assert time.at(2, 2 * 100) == pytest.approx(5.0)
    assert time.at(2, 2 * 300) == pytest.approx(7.0)
    assert time.at(8, 8 * 50) == time.at(8, 8 * 100) == pytest.approx(8.0), "noise does not make reading free"


def test_times_lie_on_lines_between_what_was_measured() -> None:
    time = StepTime((1, 2, 8), (1.0, 2.0, 14.0), (0.1, 0.2, 0.2))
    assert [time.at(batch, 0) for batch in (1, 2, 5, 8, 9)] == [1.0, 2.0, 8.0, 14.0, 14.0]
    assert time.at(1, 30) == pytest.approx(4.0)
    assert time.at(4, 10) == pytest.approx(2.0 + 12.0 / 3 + 2.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_the_cache_is_as_before_and_ranks_meanwhile(dtype: torch.dtype) -> None:
    slots = 10_000
    buffers = [torch.zeros(slots, 2, 8, dtype=dtype) for _ in range(LAYERS)]
    table = torch.zeros(5, 64, dtype=torch.int32)
    runner = SimpleNamespace(
        req_to_token_pool=SimpleNamespace(req_to_token=table),
        token_to_kv_pool=SimpleNamespace(get_key_buffer=lambda layer: buffers[layer]),
        max_total_num_tokens=slots,
    )
    plan = LayerPlan.from_select_layers(LAYERS, SELECTS)
    kept = DecodeMetrics(LimConfig(), plan)
    attention = SimpleNamespace(metrics=kept, plan=plan)
    with fill_cache(runner, attention):  # type: ignore[arg-type]
        assert len(table.unique()) == table.numel()
        assert all(len(buffers[layer].float()[:4096, 0, 0].unique()) > 50 for layer in SELECTS)
        assert not buffers[0].float().any()
        attention.metrics.observe_decode([5000])
    assert not table.any()
    assert not any(buffer.float().any() for buffer in buffers)
    assert attention.metrics is kept
    assert kept.decode_steps == 0
    table[3, :7] = 5
    with pytest.raises(AssertionError, match="a request holds slots"), fill_cache(runner, attention):  # type: ignore[arg-type]
        pass
