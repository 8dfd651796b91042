"""The gate before the speed of kernels: what is wrong gets none. What is timed needs a GPU and is a stand-in."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = ModuleType("flashinfer")
    fake.BatchDecodeWithPagedKVCacheWrapper = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", fake)
    for name in ("bench.speed.decode_attention", "bench.speed.attention_problem", "lim_sglang.attention.wrappers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found: Any = importlib.import_module("bench.speed.decode_attention")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(found, "layer_us", lambda run: 1.0)
    monkeypatch.setattr(found, "graph_us", lambda run: (100.0, 0.0))
    monkeypatch.setattr(found, "measure", lambda *_: {"speedup": 3.0})
    return found


@pytest.mark.parametrize("wrong", ["", "wrong set of request 3"], ids=["right", "wrong"])
def test_what_is_wrong_gets_no_speed(module: Any, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    class Problem:
        def __init__(self, *_: object) -> None: ...
        def dense_stages(self) -> dict[str, Any]:
            return {"dense": None}

        def use(self, budget: int) -> None:
            self.budget = budget

        def problem_with_kernels(self) -> str:
            return wrong if self.budget == 2048 else ""

    monkeypatch.setattr(module, "Problem", Problem)
    rows = list(module.measure_shape(8, 32768, [1024, 2048], copy=3.0))
    assert [row["speedup"] for row in rows] == [3.0, wrong or 3.0]
    assert all(set(row) <= set(module.COLUMNS) for row in rows)
