"""The gate before the speed of kernels: what is wrong gets none. What is timed needs a GPU and is a stand-in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.speed import decode_attention


@pytest.mark.parametrize("wrong", ["", "wrong set of request 3"], ids=["right", "wrong"])
def test_what_is_wrong_gets_no_speed(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(decode_attention, "layer_us", lambda run: 1.0)
    monkeypatch.setattr(decode_attention, "graph_us", lambda run: (100.0, 0.0))
    monkeypatch.setattr(decode_attention, "measure", lambda *_: {"speedup": 3.0})

    class Problem:
        def __init__(self, *_: object) -> None: ...
        def dense_stages(self) -> dict[str, Any]:
            return {"dense": None}

        def use(self, budget: int) -> None:
            self.budget = budget

        def problem_with_kernels(self) -> str:
            return wrong if self.budget == 2048 else ""

    monkeypatch.setattr(decode_attention, "Problem", Problem)
    rows = list(decode_attention.measure_shape(8, 32768, [1024, 2048], copy=3.0))
    assert [row["speedup"] for row in rows] == [3.0, wrong or 3.0]
    assert all(set(row) <= set(decode_attention.COLUMNS) for row in rows)
