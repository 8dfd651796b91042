"""The selection kernels against the reference: exact sets, poisoned buffers, awkward shapes."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from lim_kernels.select.budget import split_budget
from lim_kernels.select.launch import write_sparse_indptr
from lim_kernels.select.reference import head_scores
from lim_kernels.select.workspace import SelectWorkspace

from .cases import DEVICE, ON_GPU, SelectCase, random_case

SHAPES = {
    "ragged": SelectCase([60, 20, 3, 16, 17]),
    "budget 1": SelectCase([1, 2, 40], budget=1, recency_ratio=0.0, sinks=0),
    "ratio 0": SelectCase([17, 63], recency_ratio=0.0, sinks=0),
    "ratio 1": SelectCase([17, 63], recency_ratio=1.0, sinks=4),
    "no sinks": SelectCase([17, 63], sinks=0),
    "sinks do not fit": SelectCase([17, 63], recency_ratio=0.1, sinks=9),
    "multi-head": SelectCase([40], heads=4, kv_heads=4),
    "multi-query": SelectCase([40], heads=20, kv_heads=1),
    "one head": SelectCase([63, 40], heads=1, kv_heads=1),
    "SmolLM2 heads": SelectCase([63], heads=9, kv_heads=3),
    "head dim 96": SelectCase([40], head_dim=96),
    "fp16": SelectCase([63], dtype=torch.float16),
    "fp8": SelectCase([40], k_dtype=torch.float8_e4m3fn),
    "two requests at a time": SelectCase([60, 20, 33, 40, 41], heads=2, kv_heads=1, rows=2),
    "budget above a tile": SelectCase([200], heads=2, kv_heads=1, budget=130),
}


@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES)
def test_slots_are_the_references(case: SelectCase) -> None:
    assert case.select()[0] == case.expected_sets()


@pytest.mark.parametrize(("tied", "flag"), [(False, 0), (True, 1)], ids=["shortlists", "complete ranking"])
def test_which_way_a_request_goes(tied: bool, flag: int) -> None:
    """Distinct scores are settled by the shortlists; where all are tied there is no shortlist to cut."""
    case = SelectCase([90], integers=False)
    if tied:
        case.q.zero_()
    chosen, workspace = case.select()
    assert workspace.unfinished.tolist() == [flag]
    assert chosen == case.expected_sets(case.scores(workspace))


def test_heads_that_agree_need_the_complete_ranking() -> None:
    """With one KV head and equal queries the merged list has one new token per rank."""
    case = SelectCase([110], heads=4, kv_heads=1, budget=60, integers=False)
    case.q.copy_(case.q[:, :1].expand_as(case.q).clone())
    chosen, workspace = case.select()
    assert workspace.unfinished.tolist() == [1]
    assert chosen == case.expected_sets(case.scores(workspace))


def test_best_candidates_in_one_place_are_searched_twice() -> None:
    """Spans full of high scores list more candidates than are wanted: a second cut, inside them."""
    case = SelectCase([700], heads=2, kv_heads=1, budget=64, integers=False)
    crowded = case.slots(0)[100:420].long()
    case.cache.keys[crowded] += 3 * case.q[0, 0]
    chosen, workspace = case.select()
    assert chosen == case.expected_sets(case.scores(workspace))
    listed = workspace.spans[0, 0].ge(0).sum() * 16  # the poison is -1
    assert int(workspace.counts[0, 0]) < int(listed) // 2, "the case must need the second search"


def test_more_sinks_than_a_span_holds() -> None:
    case = SelectCase([150], budget=64, recency_ratio=0.5, sinks=30, integers=False)
    chosen, workspace = case.select()
    assert workspace.unfinished.tolist() == [0]
    assert chosen == case.expected_sets(case.scores(workspace))


def test_negative_zero_ties_with_zero() -> None:
    case = SelectCase([90], heads=1, kv_heads=1, head_dim=16)
    case.q.fill_(-1.0)
    case.cache.keys.zero_()
    assert case.select()[0] == case.expected_sets()


def test_random_normal_scores() -> None:
    """Scores within rounding of the reference's; the set exactly what the reference makes of these scores."""
    case = SelectCase([63, 17, 9], integers=False)
    chosen, workspace = case.select()
    found = case.scores(workspace)
    for b, length in enumerate(case.lengths):
        inner = slice(case.parts.sinks, length - case.parts.recent)
        if length > case.budget:
            exact = head_scores(case.q[b], case.cache.keys[case.slots(b).long()])[:, inner]
            torch.testing.assert_close(found[b][:, inner], exact, rtol=0, atol=2e-5)
    assert chosen == case.expected_sets(found)


@pytest.mark.parametrize("seed", range(320 if ON_GPU else 4))
def test_random_shapes(seed: int) -> None:
    case = random_case(seed)
    assert case.select()[0] == case.expected_sets()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("lengths", [[32_768, 2048, 2049, 7], [131_072]], ids=["32K", "128K"])
def test_serving_shapes(dtype: torch.dtype, lengths: list[int]) -> None:
    q_dtype = torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype
    case = SelectCase(lengths, 32, 8, 128, q_dtype, dtype, budget=2048, sinks=4, integers=False)
    chosen, workspace = case.select()
    assert chosen == case.expected_sets(case.scores(workspace))


@pytest.mark.gpu
def test_largest_budget() -> None:
    case = SelectCase([20_000, 9000], 32, 8, 128, torch.bfloat16, budget=8192, sinks=4)
    assert case.select()[0] == case.expected_sets()


@pytest.mark.gpu
def test_batch_of_256() -> None:
    case = SelectCase([random.Random(b).randint(1, 600) for b in range(256)], 8, 2, 64, torch.bfloat16, budget=128)
    assert case.select()[0] == case.expected_sets()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 6, 32)}, "a multiple of Hk"),
        ({"q": torch.zeros(2, 6, 64, dtype=torch.float64)}, "q of torch.float64"),
        ({"sparse_indptr": torch.zeros(3, dtype=torch.int64)}, "contiguous torch.int32"),
        ({"sparse_indices": torch.zeros(31, dtype=torch.int32)}, "expected at least B * K = 32"),
        ({"budget": 24}, "workspace for another head count or budget"),
    ],
    ids=["head size", "dtype", "index", "room", "workspace"],
)
def test_bad_arguments_get_one_line(change: dict[str, Any], message: str) -> None:
    case = SelectCase([20, 30])
    room = torch.zeros(2 * 24, dtype=torch.int32, device=DEVICE)
    layer = case.layer(case.select_workspace(), room[:3], room)
    tensors = {name: value.to(DEVICE) for name, value in change.items() if name != "budget"}
    index = {name: tensors.pop(name) for name in list(tensors) if name.startswith("sparse")}
    parts = split_budget(change.get("budget", case.budget), 0.25, 2)
    layer = replace(layer, index=layer.index._replace(**index), parts=parts, **tensors)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        layer.run()
    assert "\n" not in str(caught.value)


def test_limits_are_named() -> None:
    with pytest.raises(ValueError, match="expected at most 8192; lower the budget"):
        SelectWorkspace.allocate(1, 100, 4, split_budget(20_000, 0.25, 4), DEVICE)


@pytest.mark.gpu
def test_a_step_neither_synchronises_nor_allocates() -> None:
    case = SelectCase([5000, 100, 2049], 32, 8, 128, torch.bfloat16, budget=2048, sinks=4)
    workspace = case.select_workspace()
    indptr = torch.zeros(4, dtype=torch.int32, device=DEVICE)
    indices = torch.zeros(3 * 2048, dtype=torch.int32, device=DEVICE)

    layer = case.layer(workspace, indptr, indices)

    def step() -> None:
        write_sparse_indptr(case.requests.kv_indptr, indptr, 3, 2048)
        layer.run()

    step()  # compiles
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
