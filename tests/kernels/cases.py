"""Layers of decode steps with poisoned scratch, and what they must give.

On a GPU kernels run compiled, elsewhere in Triton's interpreter (small shapes, no bf16 there: its arithmetic is wrong;
fp8 as bytes).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lim_kernels.attend.launch import AttendConfig, AttendWorkspace, KVCache, Requests, attend
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
    """One layer of one decode step, or of a verification of ``q_len`` tokens per request, the last of its length.

    Slots are a random permutation of the cache.
    """

    lengths: list[int]
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 64
    dtype: torch.dtype = torch.bfloat16 if ON_GPU else torch.float32
    k_dtype: torch.dtype | None = None
    soft_cap: float = 0.0
    value_scale: float = 1.0
    config: AttendConfig = SMALL.attend
    q_len: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        slots = sum(self.lengths) + 5
        self.q = self.random(generator, len(self.lengths) * self.q_len, self.heads, self.head_dim)
        self.q = self.q.to(DEVICE, self.dtype)
        # NHD pools hold K beside other data: strided, not contiguous
        pool = self.random(generator, slots, self.kv_heads, 2 * self.head_dim).to(DEVICE, self.k_dtype or self.dtype)
        keys, values = pool.split(self.head_dim, dim=2)
        self.cache = KVCache(keys, values, self.head_dim**-0.5, self.value_scale, self.soft_cap)
        kv_indices = torch.randperm(slots, generator=generator)[: sum(self.lengths)].int().to(DEVICE)
        kv_indptr = torch.tensor([0, *self.lengths]).cumsum(0).int().to(DEVICE)
        self.requests = Requests(kv_indptr, kv_indices, 0, len(self.lengths), self.q_len)

    def random(self, generator: torch.Generator, *shape: int) -> Tensor:
        return 2 * torch.randn(shape, generator=generator)

    def slots(self, request: int) -> Tensor:
        begin, end = self.requests.kv_indptr[request : request + 2].tolist()
        return self.requests.kv_indices[begin:end]

    def workspace(self) -> AttendWorkspace:
        shape = len(self.lengths), self.heads, self.kv_heads, self.head_dim
        made = AttendWorkspace.allocate(*shape, DEVICE, self.config, self.q_len)
        made.partial.fill_(float("nan"))
        made.lse.fill_(float("nan"))
        return made

    def run(self, requests: Requests | None = None) -> Tensor:
        out = torch.full_like(self.q, float("nan"))
        attend(self.q, self.cache, requests or self.requests, out, self.workspace(), self.config)
        return out

    def caches(self) -> tuple[Tensor, Tensor]:
        return self.cache.keys.to(self.dtype), self.cache.values.to(self.dtype)

    def expected(self) -> Tensor:
        index = self.requests[:2]
        out = decode_attention(self.q, *self.caches(), *index, self.cache.sm_scale, self.soft_cap)
        return out * self.value_scale

    def check(self, out: Tensor, expected: Tensor) -> None:
        """float32 to rounding, else to two units of the dtype, which the rounded weights cost."""
        tolerance = 2e-6 if self.dtype == torch.float32 else 2 * torch.finfo(self.dtype).eps
        largest = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(out.float(), expected, rtol=0, atol=tolerance * largest)


@dataclass
class SelectCase(Case):
    """One decode step's SELECT layer.

    With ``integers``, small ones, scores can be compared across devices and orders of summation: their dot products are
    exact in float32, and most of them tie.
    """

    budget: int = 16
    recency_ratio: float = 0.25
    sinks: int = 2
    dtype: torch.dtype = torch.float32
    integers: bool = True
    rows: int | None = None

    def __post_init__(self) -> None:
        self.parts = split_budget(self.budget, self.recency_ratio, self.sinks)
        super().__post_init__()

    def random(self, generator: torch.Generator, *shape: int) -> Tensor:
        if self.integers:
            return torch.randint(-2, 3, shape, generator=generator).float()
        return torch.randn(shape, generator=generator)

    def select_workspace(self) -> SelectWorkspace:
        workspace = SelectWorkspace.allocate(len(self.lengths), max(self.lengths), self.heads, self.parts, DEVICE)
        if self.rows is not None:
            workspace = SelectWorkspace(*(t[: self.rows] for t in vars(workspace).values()))
        for buffer in vars(workspace).values():
            buffer.fill_(-1)  # below every rank, beside every list, neither flag
        workspace.scores.fill_(2**31 - 1)  # the highest score there is
        workspace.maxima.fill_(2**31 - 1)
        return workspace

    def exchange(self, shard: HeadShard, rows: int) -> Exchange:
        exchange = Exchange.allocate(shard, rows, self.parts.selected, DEVICE)
        for buffer in (exchange.offered, exchange.gathered, exchange.joined):
            buffer.fill_(-1)
        return exchange

    def layer(self, workspace: SelectWorkspace, sparse_indptr: Tensor, sparse_indices: Tensor) -> SelectLayer:
        return SelectLayer(
            self.q,
            self.cache,
            SlotIndex(*self.requests[:2], sparse_indptr, sparse_indices),
            torch.full_like(self.q, float("nan")),
            self.parts,
            workspace,
            self.workspace(),
            SMALL,
        )

    def of_shard(self, shard: HeadShard) -> SelectCase:
        """The heads of one device of several; where these are more than KV heads, several hold the same."""
        own, group = self.heads // shard.devices, self.heads // self.kv_heads
        part = replace(self, heads=own, kv_heads=max(1, own // group))
        kv = slice(shard.first_head // group, shard.first_head // group + part.kv_heads)
        part.q = self.q[:, shard.first_head : shard.first_head + own]
        part.cache = self.cache._replace(keys=self.cache.keys[:, kv], values=self.cache.values[:, kv])
        part.requests = self.requests
        return part

    def select(
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
        workspace = self.select_workspace()
        write_sparse_indptr(self.requests.kv_indptr, indptr, batch, self.budget)
        exchange = shard and self.exchange(shard, len(workspace.ranks))
        layer = replace(self.layer(workspace, indptr, indices), exchange=exchange)
        execute(layer.run)
        self.check(layer.out, self.expected())  # the attention, whatever is selected
        ends = indptr.tolist()
        assert ends[: batch + 1] == [0, *torch.tensor(self.lengths).clamp(max=self.budget).cumsum(0).tolist()]
        assert ends[batch + 1] == POISON
        assert bool((indices[ends[batch] :] == POISON).all())
        return [indices[ends[b] : ends[b + 1]].tolist() for b in range(batch)], workspace

    def expected_sets(self, scores: list[Tensor] | None = None) -> list[list[int]]:
        """The reference's slots, from its own scores or from given ones ([H, n] each)."""
        chosen = []
        for b, length in enumerate(self.lengths):
            own = self.slots(b)
            score = head_scores(self.q[b].float(), self.cache.keys[own.long()].float()) if scores is None else scores[b]
            token_set = select_token_set(score[None], torch.tensor([length], device=DEVICE), self.parts)
            chosen.append(own[token_set.positions[0, : int(token_set.lengths[0])]].tolist())
        return chosen

    def scores(self, workspace: SelectWorkspace) -> list[Tensor]:
        """What ``attend_kernel`` left behind, as float32; positions that are no candidates hold zeros."""
        found = []
        for b, length in enumerate(self.lengths):
            score = torch.zeros(self.heads, length, device=DEVICE)
            if length > self.budget:
                inner = slice(self.parts.sinks, length - self.parts.recent)
                ordered = workspace.scores[b, :, inner]
                score[:, inner] = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
            found.append(score)
        return found


def random_case(seed: int) -> SelectCase:
    """A SELECT layer of awkward sizes, mostly around the budget."""
    draw = random.Random(seed)
    kv_heads = draw.choice([1, 2, 3, 8] if ON_GPU else [1, 2])
    budget = draw.choice([1, 7, 64, 250, 1024, 2048] if ON_GPU else [1, 7, 40])
    longest = draw.choice([budget + 1, 2 * budget + 3, 20_000] if ON_GPU else [budget + 1, 60])
    edges = [1, budget, budget + 1, max(1, budget - 1)]
    return SelectCase(
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


def capture(run: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """Run once, capture, and replay twice; the graph."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    graph.replay()
    torch.cuda.synchronize()
    return graph
