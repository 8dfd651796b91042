"""The wrappers of a GPU: what FlashInfer is told, recorded by a stand-in, and this project's kernels, interpreted."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lim_kernels.attend.reference import decode_attention
from lim_kernels.select.budget import split_budget
from lim_kernels.select.launch import write_sparse_indptr
from lim_kernels.select.reference import head_scores, select_token_set
from lim_kernels.select.shard import HeadShard

from .recording_wrapper import RecordingWrapper

BUDGET, MAX_BATCH = 64, 8


@pytest.fixture
def executor(wrappers: Any) -> Any:
    shape = wrappers.AttentionShape(32, 8, 128, torch.bfloat16, torch.float8_e4m3fn)
    indptr = torch.zeros(MAX_BATCH + 1, dtype=torch.int32)
    indices = torch.zeros(MAX_BATCH * BUDGET, dtype=torch.int32)
    return wrappers.FlashInferSparse(torch.zeros(16, dtype=torch.uint8), indptr, indices, BUDGET, shape)


def test_one_wrapper_and_one_plan_per_batch_size(executor: Any) -> None:
    """Capturing a batch size again, for LoRA say, must give the wrapper that older graphs hold too."""
    first = executor.wrapper_for_graph(4)
    assert executor.wrapper_for_graph(4) is first
    assert executor.wrapper_for_graph(5) is not first
    assert [len(wrapper.plans) for wrapper in RecordingWrapper.made] == [1, 1]


def test_the_wrapper_reads_what_the_selection_writes(executor: Any) -> None:
    options = executor.wrapper_for_graph(3).options
    assert options["use_cuda_graph"]
    assert options["use_tensor_cores"], "the other path reads out of bounds when a request is shorter than planned"
    assert options["paged_kv_indices_buffer"] is executor.sparse_indices
    executor.sparse_indptr[:4] = torch.tensor([0, 1, 5, 9], dtype=torch.int32)
    assert options["paged_kv_indptr_buffer"].tolist() == [0, 1, 5, 9]
    assert options["paged_kv_last_page_len_buffer"].tolist() == [1, 1, 1]


def test_the_plan_is_for_the_whole_budget_and_needs_no_device(executor: Any) -> None:
    (indptr, indices, last_page_len, *shape), options = executor.wrapper_for_graph(3).plans[0]
    assert indptr.tolist() == [0, BUDGET, 2 * BUDGET, 3 * BUDGET]
    assert indptr.dtype == torch.int32
    assert indptr.device.type == "cpu"
    assert len(indices) == 0, "nothing may be copied over the slots"
    assert last_page_len.tolist() == [1, 1, 1]
    assert shape == [32, 8, 128, 1]
    assert options == {"q_data_type": torch.bfloat16, "kv_data_type": torch.float8_e4m3fn}


def test_every_wrapper_has_a_plan_of_its_own(executor: Any) -> None:
    executor.wrapper_for_graph(1)
    executor.wrapper_for_graph(2)
    executor.wrapper_without_graph(3)
    int_workspaces = [wrapper.int_workspace for wrapper in RecordingWrapper.made]
    assert len({id(workspace) for workspace in int_workspaces}) == 4, "plans are read while graphs run"


def test_steps_without_a_graph_share_two_wrappers(executor: Any) -> None:
    """The one whose plan may still be on its way to the device is not planned again."""
    sizes = [3, 4, 3, 3, 8, 1, 8, 1, 2]
    taken = [executor.wrapper_without_graph(size) for size in sizes]
    assert len(RecordingWrapper.made) == 2
    for (before, last), (size, wrapper) in pairwise(zip(sizes, taken, strict=True)):
        assert (wrapper is last) == (size == before)
    assert sum(len(wrapper.plans) for wrapper in RecordingWrapper.made) == 8
    assert not any(wrapper.options["use_cuda_graph"] for wrapper in RecordingWrapper.made)
    assert all(wrapper.options["use_tensor_cores"] for wrapper in RecordingWrapper.made)


def test_a_step_without_a_graph_reads_what_the_selection_writes(executor: Any) -> None:
    for size in (3, 5, 2):
        wrapper = executor.wrapper_without_graph(size)
        indptr = wrapper.plans[-1][0][0]
        assert indptr.tolist() == [BUDGET * request for request in range(size + 1)]
        executor.sparse_indptr[: size + 1] = torch.arange(size + 1, dtype=torch.int32)
        assert wrapper._paged_kv_indptr_buf.tolist() == list(range(size + 1))
        assert wrapper._paged_kv_indices_buf is executor.sparse_indices


def plan_bytes(batch: int, heads: int, kv_heads: int, multiprocessors: int, graph: bool) -> int:
    """What FlashInfer 0.6.14 takes of its int workspace (scheduler.cuh: PrefillPlan), the largest tile of 16 rows."""
    split_tiles = 2 * multiprocessors // kv_heads
    tiles = -(-batch * heads // kv_heads // 16) + batch - 1 if graph else batch * -(-heads // kv_heads // 16)
    padded = max(split_tiles, tiles)
    parts = [*[4 * padded] * 3, 4 * (batch + 1), 4, 4, 4 * (batch + 1), padded]
    return sum(-(-part // 16) * 16 for part in parts)


@pytest.mark.parametrize("graph", [True, False], ids=["captured", "without a graph"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 8), (8, 8), (16, 1), (64, 4), (1, 1)])
def test_a_plan_fits_into_its_workspace(wrappers: Any, heads: int, kv_heads: int, graph: bool) -> None:
    from lim_sglang.attention.flashinfer_sparse import int_workspace_bytes

    for batch in (1, 2, 33, 34, 257, 1400, 4096):
        assert plan_bytes(batch, heads, kv_heads, 160, graph) <= int_workspace_bytes(batch)


LENGTHS = [100, 7, 64, 65]


@pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted shapes; a GPU serves in tests/e2e")
@pytest.mark.parametrize(
    ("k_scale", "soft_cap", "ranks_share"), [(None, 0.0, True), (0.5, 0.4, False)], ids=["ranks", "scaled and capped"]
)
def test_a_step_selects_and_attends(wrappers: Any, k_scale: float | None, soft_cap: float, ranks_share: bool) -> None:
    """A SELECT layer, then a SPARSE one, as SGLang's backend calls them, on other keys and values.

    The other rank's heads, a copy of this one's, want the same tokens.
    """
    heads, kv_heads, head_dim = 4, 2, 16
    shape = wrappers.AttentionShape(heads, kv_heads, head_dim, torch.float32, torch.float32)
    parts = split_budget(BUDGET, 0.25, 2)
    gathered = []

    def all_gather(out: torch.Tensor, offered: torch.Tensor) -> None:
        gathered.append(len(offered))
        out.copy_(offered.expand_as(out))
        out[1, ..., 0] += heads

    shard = HeadShard(2 * heads, 0, 2, all_gather) if ranks_share else None
    buffers = wrappers.StepBuffers.allocate(MAX_BATCH, 128, parts, shape, torch.device("cpu"), shard)
    alone = wrappers.StepBuffers.allocate(MAX_BATCH, 128, parts, shape, torch.device("cpu"))
    assert buffers.nbytes - alone.nbytes == (buffers.exchange.nbytes if ranks_share else 0)
    buffers.out.fill_(float("nan"))
    indptr = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    slots = torch.randperm(sum(LENGTHS) + 2).int()
    dense = SimpleNamespace(_paged_kv_indptr_buf=indptr, _paged_kv_indices_buf=slots)
    q = torch.randn(len(LENGTHS), heads, head_dim)
    first, second = (tuple(torch.randn(len(slots), kv_heads, head_dim) for _ in "kv") for _layer in range(2))
    scales = {"sm_scale": 0.3, "logits_soft_cap": soft_cap, "k_scale": k_scale, "v_scale": k_scale}
    factor = 1.0 if k_scale is None else k_scale

    write_sparse_indptr(indptr, buffers.sparse_indptr, len(LENGTHS), BUDGET)
    output = wrappers.SelectWrapper(buffers, parts, dense).forward(q, first, **scales).clone()
    torch.testing.assert_close(output, factor * decode_attention(q, *first, indptr, slots, 0.3 * factor, soft_cap))
    sets = []
    for request, length in enumerate(LENGTHS):
        own = slots[indptr[request] : indptr[request + 1]]
        scores = head_scores(q[request], first[0][own.long()])
        chosen = select_token_set(scores[None], torch.tensor([length]), parts)
        sets.append(own[chosen.positions[0, : int(chosen.lengths[0])]])
    assert buffers.sparse_indices[: int(buffers.sparse_indptr[len(LENGTHS)])].tolist() == torch.cat(sets).tolist()
    assert gathered == [len(LENGTHS)] * ranks_share

    output = wrappers.SplitKVWrapper(buffers).forward(q, second, **scales)
    index = buffers.sparse_indptr, torch.cat(sets)
    torch.testing.assert_close(output, factor * decode_attention(q, *second, *index, 0.3 * factor, soft_cap))


def test_memory_stays_within_what_is_promised(wrappers: Any) -> None:
    """At most 512 MiB at 64 running requests of 40K context, Qwen3-8B's shape, all captured sizes included."""
    shape = wrappers.AttentionShape(32, 8, 128, torch.bfloat16, torch.bfloat16)
    buffers = wrappers.StepBuffers.allocate(64, 40 * 1024, split_budget(2048, 0.25, 4), shape, torch.device("meta"))
    from lim_sglang.attention.flashinfer_sparse import int_workspace_bytes

    captured = 36
    assert buffers.nbytes + captured * int_workspace_bytes(64) <= 512 << 20
