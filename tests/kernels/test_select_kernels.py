"""The selection kernels against the reference: exact sets, poisoned buffers, awkward shapes.

On a GPU they run compiled, elsewhere in Triton's interpreter (small shapes, no bf16 there: its arithmetic is wrong;
fp8 as bytes). Inputs are small integers where scores are compared across devices and orders of summation:
their dot products are exact in float32, and most of them tie.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lim_kernels.attend.launch import AttendConfig, AttendWorkspace, KVCache
from lim_kernels.attend.reference import decode_attention
from lim_kernels.select.budget import split_budget
from lim_kernels.select.launch import LaunchConfig, SelectLayer, SlotIndex, write_sparse_indptr
from lim_kernels.select.reference import head_scores, select_token_set
from lim_kernels.select.shard import Exchange, HeadShard
from lim_kernels.select.workspace import SelectWorkspace

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
SMALL = (
    LaunchConfig()
    if ON_GPU
    else LaunchConfig(
        AttendConfig(block_n=16, programs=40, min_splits=2, max_splits=8),
        block=64,
        shortlist_block=64,
        rank_block=32,
        emit_block=32,
        emit_programs=12,
    )
)
POISON = -77


@dataclass
class Case:
    """One decode step's inputs; slots are a random permutation of the cache."""

    lengths: list[int]
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 64
    budget: int = 16
    recency_ratio: float = 0.25
    sinks: int = 2
    dtype: torch.dtype = torch.float32
    k_dtype: torch.dtype | None = None
    integers: bool = True
    rows: int | None = None
    seed: int = 0
    config: LaunchConfig = field(default_factory=lambda: SMALL)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.parts = split_budget(self.budget, self.recency_ratio, self.sinks)
        slots = sum(self.lengths) + 5
        self.q = self._values(generator, len(self.lengths), self.heads, self.head_dim).to(DEVICE, self.dtype)
        # NHD pools hold K beside other data: strided, not contiguous
        pool = self._values(generator, slots, self.kv_heads, 2 * self.head_dim).to(DEVICE, self.k_dtype or self.dtype)
        self.k_cache, self.v_cache = pool.split(self.head_dim, dim=2)
        self.sm_scale = self.head_dim**-0.5
        self.kv_indices = torch.randperm(slots, generator=generator)[: sum(self.lengths)].int().to(DEVICE)
        self.kv_indptr = torch.tensor([0, *self.lengths]).cumsum(0).int().to(DEVICE)

    def _values(self, generator: torch.Generator, *shape: int) -> Tensor:
        if self.integers:
            return torch.randint(-2, 3, shape, generator=generator).float()
        return torch.randn(shape, generator=generator)

    def poisoned_workspace(self) -> SelectWorkspace:
        workspace = SelectWorkspace.allocate(len(self.lengths), max(self.lengths), self.heads, self.parts, DEVICE)
        if self.rows is not None:
            workspace = SelectWorkspace(*(t[: self.rows] for t in vars(workspace).values()))
        for buffer in vars(workspace).values():
            buffer.fill_(-1)  # below every rank, beside every list, neither flag
        workspace.scores.fill_(2**31 - 1)  # the highest score there is
        workspace.maxima.fill_(2**31 - 1)
        return workspace

    def poisoned_attend_workspace(self) -> AttendWorkspace:
        shape = len(self.lengths), self.heads, self.kv_heads, self.head_dim
        workspace = AttendWorkspace.allocate(*shape, DEVICE, self.config.attend)
        workspace.partial.fill_(float("nan"))
        workspace.lse.fill_(float("nan"))
        return workspace

    def poisoned_exchange(self, shard: HeadShard, rows: int) -> Exchange:
        exchange = Exchange.allocate(shard, rows, self.parts.selected, DEVICE)
        for buffer in (exchange.offered, exchange.gathered, exchange.joined):
            buffer.fill_(-1)
        return exchange

    def layer(self, workspace: SelectWorkspace, sparse_indptr: Tensor, sparse_indices: Tensor) -> SelectLayer:
        return SelectLayer(
            self.q,
            KVCache(self.k_cache, self.v_cache, self.sm_scale),
            SlotIndex(self.kv_indptr, self.kv_indices, sparse_indptr, sparse_indices),
            torch.full_like(self.q, float("nan")),
            self.parts,
            workspace,
            self.poisoned_attend_workspace(),
            self.config,
        )

    def of_shard(self, shard: HeadShard) -> Case:
        """The heads of one device of several; where these are more than KV heads, several hold the same."""
        own, group = self.heads // shard.devices, self.heads // self.kv_heads
        part = replace(self, heads=own, kv_heads=max(1, own // group))
        kv = slice(shard.first_head // group, shard.first_head // group + part.kv_heads)
        part.q = self.q[:, shard.first_head : shard.first_head + own]
        part.k_cache, part.v_cache = self.k_cache[:, kv], self.v_cache[:, kv]
        part.kv_indices, part.kv_indptr = self.kv_indices, self.kv_indptr
        return part

    def run(
        self, shard: HeadShard | None = None, execute: Callable[[Callable[[], None]], None] = lambda run: run()
    ) -> tuple[list[list[int]], SelectWorkspace]:
        """The slots that the kernels chose, by request; nothing beyond them may have been written.

        Args:
            shard: where the heads are those of one device of several.
            execute: runs the layer, once or more often.
        """
        batch = len(self.lengths)
        indptr = torch.full((batch + 2,), POISON, dtype=torch.int32, device=DEVICE)
        indices = torch.full((batch * self.budget + 9,), POISON, dtype=torch.int32, device=DEVICE)
        workspace = self.poisoned_workspace()
        write_sparse_indptr(self.kv_indptr, indptr, batch, self.budget)
        exchange = shard and self.poisoned_exchange(shard, len(workspace.ranks))
        layer = replace(self.layer(workspace, indptr, indices), exchange=exchange)
        execute(layer.run)
        self.check_output(layer.out)
        ends = indptr.tolist()
        assert ends[: batch + 1] == [0, *torch.tensor(self.lengths).clamp(max=self.budget).cumsum(0).tolist()]
        assert ends[batch + 1] == POISON
        assert bool((indices[ends[batch] :] == POISON).all())
        return [indices[ends[b] : ends[b + 1]].tolist() for b in range(batch)], workspace

    def check_output(self, out: Tensor) -> None:
        """The layer's attention, whatever is selected; 2 units of the output's dtype cover the rounded weights."""
        caches = self.k_cache.to(self.dtype), self.v_cache.to(self.dtype)
        exact = decode_attention(self.q, *caches, self.kv_indptr, self.kv_indices, self.sm_scale)
        scale = float(exact.abs().max())
        tolerance = 2e-6 if self.dtype == torch.float32 else 2 * torch.finfo(self.dtype).eps
        torch.testing.assert_close(out.float(), exact, rtol=0, atol=tolerance * max(scale, 1.0))

    def expected(self, scores: list[Tensor] | None = None) -> list[list[int]]:
        """The reference's slots, from its own scores or from given ones ([H, n] each)."""
        chosen = []
        for b, length in enumerate(self.lengths):
            own = self.kv_indices[self.kv_indptr[b] : self.kv_indptr[b + 1]]
            score = head_scores(self.q[b].float(), self.k_cache[own.long()].float()) if scores is None else scores[b]
            token_set = select_token_set(score[None], torch.tensor([length], device=DEVICE), self.parts)
            chosen.append(own[token_set.positions[0, : int(token_set.lengths[0])]].tolist())
        return chosen


def scores_of(case: Case, workspace: SelectWorkspace) -> list[Tensor]:
    """What ``attend_kernel`` left behind, as float32; positions that are no candidates hold zeros."""
    found = []
    for b, length in enumerate(case.lengths):
        score = torch.zeros(case.heads, length, device=DEVICE)
        if length > case.budget:
            inner = slice(case.parts.sinks, length - case.parts.recent)
            ordered = workspace.scores[b, :, inner]
            score[:, inner] = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
        found.append(score)
    return found


SHAPES = {
    "ragged": Case([60, 20, 3, 16, 17]),
    "budget 1": Case([1, 2, 40], budget=1, recency_ratio=0.0, sinks=0),
    "ratio 0": Case([17, 63], recency_ratio=0.0, sinks=0),
    "ratio 1": Case([17, 63], recency_ratio=1.0, sinks=4),
    "no sinks": Case([17, 63], sinks=0),
    "sinks do not fit": Case([17, 63], recency_ratio=0.1, sinks=9),
    "multi-head": Case([40], heads=4, kv_heads=4),
    "multi-query": Case([40], heads=20, kv_heads=1),
    "one head": Case([63, 40], heads=1, kv_heads=1),
    "SmolLM2 heads": Case([63], heads=9, kv_heads=3),
    "head dim 96": Case([40], head_dim=96),
    "fp16": Case([63], dtype=torch.float16),
    "fp8": Case([40], k_dtype=torch.float8_e4m3fn),
    "two requests at a time": Case([60, 20, 33, 40, 41], heads=2, kv_heads=1, rows=2),
    "budget above a tile": Case([200, 140], heads=2, kv_heads=1, budget=130),
}


@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES)
def test_slots_are_the_references(case: Case) -> None:
    assert case.run()[0] == case.expected()


def test_constant_scores_take_the_lowest_positions() -> None:
    case = Case([90])
    case.q.zero_()
    positions = [*range(2), *range(2, 14), *range(88, 90)]
    assert case.run()[0][0] == case.kv_indices[positions].tolist()


@pytest.mark.parametrize(("tied", "flag"), [(False, 0), (True, 1)], ids=["shortlists", "complete ranking"])
def test_which_way_a_request_goes(tied: bool, flag: int) -> None:
    """Distinct scores are settled by the shortlists; where all are tied there is no shortlist to cut."""
    case = Case([90], integers=False)
    if tied:
        case.q.zero_()
    chosen, workspace = case.run()
    assert workspace.unfinished.tolist() == [flag]
    assert chosen == case.expected(scores_of(case, workspace))


def test_heads_that_agree_need_the_complete_ranking() -> None:
    """With one KV head and equal queries the merged list has one new token per rank."""
    case = Case([200], heads=4, kv_heads=1, budget=100, integers=False)
    case.q.copy_(case.q[:, :1].expand_as(case.q).clone())
    chosen, workspace = case.run()
    assert workspace.unfinished.tolist() == [1]
    assert chosen == case.expected(scores_of(case, workspace))


def test_best_candidates_in_one_place_are_searched_twice() -> None:
    """Spans full of high scores list more candidates than are wanted: a second cut, inside them."""
    case = Case([700], heads=2, kv_heads=1, budget=64, integers=False)
    own = case.kv_indices[:700].long()
    case.k_cache[own[100:420]] = 3 * case.q[0, 0] + case.k_cache[own[100:420]]
    chosen, workspace = case.run()
    assert chosen == case.expected(scores_of(case, workspace))
    listed = workspace.spans[0, 0].ge(0).sum() * 16  # the poison is -1
    assert int(workspace.counts[0, 0]) < int(listed) // 2, "the case must need the second search"


@pytest.mark.parametrize("length", [17, 33], ids=str)
def test_few_candidates_beyond_the_budget(length: int) -> None:
    case = Case([length], integers=False)
    chosen, workspace = case.run()
    assert chosen == case.expected(scores_of(case, workspace))


def test_more_sinks_than_a_span_holds() -> None:
    case = Case([150, 90], budget=64, recency_ratio=0.5, sinks=30, integers=False)
    chosen, workspace = case.run()
    assert workspace.unfinished.tolist() == [0, 0]
    assert chosen == case.expected(scores_of(case, workspace))


def test_negative_zero_ties_with_zero() -> None:
    case = Case([90], heads=1, kv_heads=1, head_dim=16)
    case.q.fill_(-1.0)
    case.k_cache.zero_()
    assert case.run()[0] == case.expected()


def test_random_normal_scores() -> None:
    """Scores within rounding of the reference's; the set exactly what the reference makes of these scores."""
    case = Case([100, 63, 9], integers=False)
    chosen, workspace = case.run()
    found = scores_of(case, workspace)
    for b, length in enumerate(case.lengths):
        own = case.kv_indices[case.kv_indptr[b] : case.kv_indptr[b + 1]].long()
        inner = slice(case.parts.sinks, length - case.parts.recent)
        if length > case.budget:
            exact = head_scores(case.q[b], case.k_cache[own])[:, inner]
            torch.testing.assert_close(found[b][:, inner], exact, rtol=0, atol=2e-5)
    assert chosen == case.expected(found)


def random_case(seed: int) -> Case:
    draw = random.Random(seed)
    kv_heads = draw.choice([1, 2, 3, 8] if ON_GPU else [1, 2])
    budget = draw.choice([1, 7, 64, 250, 1024, 2048] if ON_GPU else [1, 7, 40])
    longest = draw.choice([budget + 1, 2 * budget + 3, 20_000] if ON_GPU else [budget + 1, 60])
    edges = [1, budget, budget + 1, max(1, budget - 1)]
    return Case(
        lengths=[draw.choice([*edges, draw.randint(1, longest)]) for _ in range(draw.randint(1, 6 if ON_GPU else 3))],
        heads=kv_heads * draw.choice([1, 3, 4, 8] if ON_GPU else [1, 3]),
        kv_heads=kv_heads,
        head_dim=draw.choice([64, 96, 128, 256] if ON_GPU else [16, 64]),
        budget=budget,
        recency_ratio=draw.choice([0.0, 0.25, 0.5, 1.0]),
        sinks=draw.choice([0, 1, 4]),
        dtype=draw.choice([torch.bfloat16, torch.float16] if ON_GPU else [torch.float32, torch.float16]),
        k_dtype=draw.choice([None, torch.float8_e4m3fn]),
        rows=draw.choice([None, 2]),
        seed=seed,
    )


@pytest.mark.parametrize("seed", range(320 if ON_GPU else 8))
def test_random_shapes(seed: int) -> None:
    case = random_case(seed)
    assert case.run()[0] == case.expected()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("lengths", [[32_768, 2048, 2049, 7], [131_072]], ids=["32K", "128K"])
def test_serving_shapes(dtype: torch.dtype, lengths: list[int]) -> None:
    q_dtype = torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype
    case = Case(lengths, 32, 8, 128, 2048, 0.25, 4, q_dtype, dtype, integers=False)
    chosen, workspace = case.run()
    assert chosen == case.expected(scores_of(case, workspace))


@pytest.mark.gpu
def test_largest_budget() -> None:
    case = Case([20_000, 9000], 32, 8, 128, 8192, 0.25, 4, torch.bfloat16)
    assert case.run()[0] == case.expected()


@pytest.mark.gpu
def test_batch_of_256() -> None:
    case = Case([random.Random(b).randint(1, 600) for b in range(256)], 8, 2, 64, 128, dtype=torch.bfloat16)
    assert case.run()[0] == case.expected()


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
    case = Case([20, 30])
    room = torch.zeros(2 * 24, dtype=torch.int32, device=DEVICE)
    layer = case.layer(case.poisoned_workspace(), room[:3], room)
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
    case = Case([5000, 100, 2049], 32, 8, 128, 2048, 0.25, 4, torch.bfloat16)
    workspace = case.poisoned_workspace()
    indptr = torch.zeros(4, dtype=torch.int32, device=DEVICE)
    indices = torch.zeros(3 * 2048, dtype=torch.int32, device=DEVICE)

    layer = case.layer(workspace, indptr, indices)

    def step() -> None:
        write_sparse_indptr(case.kv_indptr, indptr, 3, 2048)
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
