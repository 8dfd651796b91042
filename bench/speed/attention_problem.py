"""One shape of decode attention on a GPU: caches, queries, index buffers, every stage as a call, and their checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lim_kernels.attend.launch import KVCache
from lim_kernels.select.budget import split_budget
from lim_kernels.select.launch import SelectLayer, SlotIndex, write_sparse_indptr
from lim_kernels.select.reference import head_scores, select_token_set

HEADS, KV_HEADS, HEAD_DIM, LAYERS = 32, 8, 128, 36
SELECT_LAYERS = (2, 12)
DENSE_LAYERS = (0, 1)
TOKEN_BYTES = 2 * KV_HEADS * HEAD_DIM * 2
TOLERANCE = 1e-2  # relative to the largest output; bf16 resolves 4e-3
COLD_BYTES = 256 << 20  # what a stage reads before it meets the same bytes again: several times the L2 cache
Stage = Callable[[int], Any]


class Problem:
    """Random-normal q, K and V of Qwen3-8B's attention (bf16), slots in random order; the wrappers that serve.

    ``use`` sets the token budget: any of ``budgets``.
    """

    def __init__(self, batch: int, context: int, budgets: Sequence[int]) -> None:
        self.batch, self.context = batch, context
        torch.manual_seed(batch * context)
        slots = batch * context
        shape = slots, KV_HEADS, HEAD_DIM
        bf16: dict[str, Any] = {"dtype": torch.bfloat16, "device": "cuda"}
        self.caches = [
            (torch.randn(shape, **bf16), torch.randn(shape, **bf16))
            for _ in range(self.num_caches(batch, context, min(budgets)))
        ]
        self.q = torch.randn(batch, HEADS, HEAD_DIM, **bf16)
        self.kv_indptr = (torch.arange(batch + 1, device="cuda") * context).int()
        self.kv_indices = torch.randperm(slots, device="cuda").int()
        self.workspace = torch.zeros(512 << 20, dtype=torch.uint8, device="cuda")
        self.dense = self.planned(self.workspace)
        self.use(budgets[0])

    def use(self, budget: int) -> None:
        """Make the buffers and wrappers for a budget of ``budget`` tokens."""
        from lim_sglang.attention.buffers import AttentionShape, StepBuffers
        from lim_sglang.attention.wrappers import SelectWrapper, SparseWrappers

        self.parts = split_budget(budget, 0.25, 4)
        dtype = torch.bfloat16
        shape = AttentionShape(HEADS, KV_HEADS, HEAD_DIM, dtype, dtype)
        self.buffers = StepBuffers.allocate(self.batch, self.context, self.parts, shape, torch.device("cuda"))
        self.select = SelectWrapper(self.buffers, self.parts, self.dense)
        sparse = SparseWrappers(self.buffers, self.workspace, budget, shape)
        self.sparse = sparse.wrapper(self.batch, for_graph=True)
        self.sparse_by_flashinfer = sparse.flashinfer.wrapper_for_graph(self.batch)
        self.sparse_by_triton = sparse.split_kv if self.sparse is sparse.split_kv else None
        # After FlashInfer's plan, which leaves its own numbers there; a served step writes them at its start.
        write_sparse_indptr(self.kv_indptr, self.buffers.sparse_indptr, self.batch, budget)

    @staticmethod
    def num_caches(batch: int, context: int, budget: int) -> int:
        """Layers' caches to rotate over, so that sparse layers do not find their tokens in L2."""
        return -(-COLD_BYTES // (batch * TOKEN_BYTES * min(context, budget)))

    @classmethod
    def nbytes(cls, batch: int, context: int, budget: int) -> int:
        """Device memory of the caches, in bytes."""
        return cls.num_caches(batch, context, budget) * batch * context * TOKEN_BYTES

    def planned(self, workspace: Tensor) -> Any:
        """FlashInfer's wrapper as SGLang plans it."""
        import flashinfer

        ones = torch.ones(self.batch, dtype=torch.int32, device="cuda")
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace,
            "NHD",
            use_cuda_graph=True,
            use_tensor_cores=True,
            paged_kv_indptr_buffer=self.kv_indptr,
            paged_kv_indices_buffer=self.kv_indices,
            paged_kv_last_page_len_buffer=ones,
            backend="fa2",
        )
        indices = self.kv_indptr.cpu(), self.kv_indices, ones
        dtype = torch.bfloat16
        wrapper.plan(*indices, HEADS, KV_HEADS, HEAD_DIM, 1, q_data_type=dtype, kv_data_type=dtype)
        return wrapper

    def attend(self, wrapper: Any, layer: int) -> Tensor:
        """One layer's attention, as SGLang's backend calls it."""
        return wrapper.forward(self.q, self.caches[layer % len(self.caches)], sm_scale=HEAD_DIM**-0.5)

    def select_layer(self, layer: int) -> SelectLayer:
        """What ``SelectWrapper.forward`` runs, for its launches one by one."""
        buffers = self.buffers
        return SelectLayer(
            self.q,
            KVCache(*self.caches[layer % len(self.caches)], sm_scale=HEAD_DIM**-0.5),
            SlotIndex(self.kv_indptr, self.kv_indices, buffers.sparse_indptr, buffers.sparse_indices),
            buffers.out,
            self.parts,
            buffers.select,
            buffers.attend,
        )

    def stages(self) -> dict[str, Stage]:
        """What to time at this budget; the argument is the layer."""
        found: dict[str, Stage] = {
            "select": partial(self.attend, self.select),
            **{name: partial(self.run_part, name) for name in ("attend", "shortlist", "emit", "finish")},
            "sparse": partial(self.attend, self.sparse_by_flashinfer),
        }
        if self.sparse_by_triton is not None:
            found["sparse_triton"] = partial(self.attend, self.sparse_by_triton)
        return found

    def run_part(self, name: str, layer: int) -> None:
        """One of a SELECT layer's launches, for every chunk of the batch."""
        select = self.select_layer(layer)
        for chunk in select.chunks():
            getattr(select, name)(chunk)

    def dense_stages(self) -> dict[str, Stage]:
        """What to time once for all budgets."""
        found: dict[str, Stage] = {"dense": partial(self.attend, self.dense)}
        if fa3 := self.fa3():
            found["dense_fa3"] = fa3
        return found

    def fa3(self) -> Stage | None:
        """FlashAttention-3 over the same bytes, contiguous by request; None where it is not installed."""
        try:
            from fa3_fwd_interface import flash_attn_with_kvcache
        except ImportError:
            return None
        shape = (self.batch, self.context, KV_HEADS, HEAD_DIM)
        lengths = torch.full((self.batch,), self.context, dtype=torch.int32, device="cuda")

        def run(layer: int) -> Tensor:
            keys, values = (tensor.view(shape) for tensor in self.caches[layer % len(self.caches)])
            return flash_attn_with_kvcache(self.q[:, None], keys, values, cache_seqlens=lengths)

        return run

    def step(self, lim: bool) -> None:
        """The decode attention of all layers of one step."""
        for layer in range(LAYERS):
            if not lim or layer in DENSE_LAYERS:
                self.attend(self.dense, layer)
            else:
                self.attend(self.select if layer in SELECT_LAYERS else self.sparse, layer)

    def problem_with_kernels(self) -> str:
        """What is wrong with the kernels' results for the first and last request, or an empty string."""
        self.buffers.sparse_indices.fill_(-1)
        self.buffers.out.fill_(float("nan"))
        error = relative_error(self.attend(self.select, 0), self.attend(self.dense, 0))
        if not error < TOLERANCE:
            return f"attention of the SELECT layer is off by {error:.2g}"
        last_first = dict.fromkeys((self.batch - 1, 0))  # the last chunk's scores are still there
        wrong = [request for request in last_first if not self.set_is_exact(request)]
        if wrong:
            return f"wrong set of request {wrong[0]}"
        expected = self.attend(self.sparse_by_flashinfer, 0)
        if self.context <= self.parts.budget:  # every token is in the set
            expected = self.attend(self.dense, 0)
        error = relative_error(self.attend(self.sparse, 0), expected)
        return "" if error < TOLERANCE else f"attention of SPARSE layers is off by {error:.2g}"

    def set_is_exact(self, request: int) -> bool:
        """Whether scores are within rounding and the set is what the reference makes of them."""
        own = self.kv_indices[self.kv_indptr[request] : self.kv_indptr[request + 1]]
        exact = head_scores(self.q[request], self.caches[0][0][own.long()])
        found = exact.clone()
        select = self.select_layer(0)
        chunk = next(chunk for chunk in reversed(select.chunks()) if chunk.first <= request)
        if self.context > self.parts.budget:
            if chunk.first + chunk.size < self.batch:
                select.run_chunk(chunk)  # the last chunk wrote over its scores
            inner = slice(self.parts.sinks, self.context - self.parts.recent)
            ordered = self.buffers.select.scores[request - chunk.first, :, : self.context][:, inner]
            found[:, inner] = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
            if not torch.allclose(found, exact, rtol=0, atol=1e-3):
                return False
        chosen = select_token_set(found[None], torch.tensor([self.context], device="cuda"), self.parts)
        expected = own[chosen.positions[0, : int(chosen.lengths[0])]]
        begin = int(self.buffers.sparse_indptr[request])
        return torch.equal(expected, self.buffers.sparse_indices[begin : begin + len(expected)])

    def unfinished(self) -> int:
        """Requests of the batch whose shortlists end too early."""
        found = 0
        select = self.select_layer(0)
        for chunk in select.chunks():
            select.run_chunk(chunk)
            found += int(self.buffers.select.unfinished[: chunk.size].sum())
        return found


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest magnitude; NaN where ``found`` has one."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())
