"""What FlashInfer is told to read in sparse layers, recorded by a stand-in where FlashInfer cannot be installed."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

BUDGET, MAX_BATCH = 64, 8


class RecordingWrapper:
    """Takes FlashInfer's arguments and keeps them."""

    made: list[RecordingWrapper]

    def __init__(self, float_workspace: torch.Tensor, kv_layout: str, **options: Any) -> None:
        self.float_workspace, self.kv_layout, self.options = float_workspace, kv_layout, options
        self.plans: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.int_workspace: torch.Tensor | None = None
        self.made.append(self)

    def reset_workspace_buffer(self, float_workspace: torch.Tensor, int_workspace: torch.Tensor) -> None:
        assert float_workspace is self.float_workspace
        self.int_workspace = int_workspace

    def plan(self, *args: Any, **options: Any) -> None:
        self.plans.append((args, options))


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = ModuleType("flashinfer")
    fake.BatchDecodeWithPagedKVCacheWrapper = RecordingWrapper  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", fake)
    monkeypatch.delitem(sys.modules, "lim_sglang.attention.wrappers", raising=False)
    from lim_sglang.attention.wrappers import AttentionShape, FlashInferSparse

    RecordingWrapper.made = []
    shape = AttentionShape(32, 8, 128, torch.bfloat16, torch.float8_e4m3fn, 2048, True)
    indptr = torch.zeros(MAX_BATCH + 1, dtype=torch.int32)
    indices = torch.zeros(MAX_BATCH * BUDGET, dtype=torch.int32)
    yield FlashInferSparse(torch.zeros(16, dtype=torch.uint8), indptr, indices, BUDGET, shape)
    monkeypatch.delitem(sys.modules, "lim_sglang.attention.wrappers", raising=False)


def test_one_wrapper_and_one_plan_per_batch_size(executor: Any) -> None:
    """Capturing a batch size again, for LoRA say, must give the wrapper that older graphs hold too."""
    first = executor.wrapper(4)
    assert executor.wrapper(4) is first
    assert executor.wrapper(5) is not first
    assert [len(wrapper.plans) for wrapper in RecordingWrapper.made] == [1, 1]


def test_the_wrapper_reads_what_the_selection_writes(executor: Any) -> None:
    options = executor.wrapper(3).options
    assert options["use_cuda_graph"]
    assert options["use_tensor_cores"], "the other path reads out of bounds when a request is shorter than planned"
    assert options["paged_kv_indices_buffer"] is executor.sparse_indices
    executor.sparse_indptr[:4] = torch.tensor([0, 1, 5, 9], dtype=torch.int32)
    assert options["paged_kv_indptr_buffer"].tolist() == [0, 1, 5, 9]
    assert options["paged_kv_last_page_len_buffer"].tolist() == [1, 1, 1]


def test_the_plan_is_for_the_whole_budget_and_needs_no_device(executor: Any) -> None:
    (indptr, indices, last_page_len, *shape), options = executor.wrapper(3).plans[0]
    assert indptr.tolist() == [0, BUDGET, 2 * BUDGET, 3 * BUDGET]
    assert indptr.dtype == torch.int32
    assert indptr.device.type == "cpu"
    assert len(indices) == 0, "nothing may be copied over the slots"
    assert last_page_len.tolist() == [1, 1, 1]
    assert shape == [32, 8, 128, 1]
    assert options == {
        "q_data_type": torch.bfloat16,
        "kv_data_type": torch.float8_e4m3fn,
        "fixed_split_size": 2048,
        "disable_split_kv": True,
    }


def test_memory_is_counted(executor: Any) -> None:
    empty = executor.nbytes
    executor.wrapper(1)
    executor.wrapper(2)
    int_workspaces = [wrapper.int_workspace for wrapper in RecordingWrapper.made]
    assert executor.nbytes - empty == sum(workspace.nbytes for workspace in int_workspaces if workspace is not None)
    assert len({id(workspace) for workspace in int_workspaces}) == 2, "plans are read while graphs run"
