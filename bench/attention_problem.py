"""One shape of decode attention on a GPU: caches, queries, index buffers, every stage as a call, and their checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flashinfer
import torch
from torch import Tensor

from lim_kernels.decode.launch import AttendWorkspace, KVCache, Requests, attend
from lim_kernels.select import head_scores, select_token_set, split_budget
from lim_kernels.select.launch import LaunchConfig, Round, SelectLayer, SelectWorkspace, SlotIndex, write_sparse_indptr

HEADS, KV_HEADS, HEAD_DIM, LAYERS = 32, 8, 128, 36
SELECT_LAYERS = (2, 12)
DENSE_LAYERS = (0, 1)
TOKEN_BYTES = 2 * KV_HEADS * HEAD_DIM * 2
COLD_BYTES = 256 << 20  # what a stage reads before it meets the same bytes again: several times the L2 cache
Stage = Callable[[int], Any]


@dataclass
class Problem:
    """Random-normal q, K and V of Qwen3-8B's attention (bf16), slots in random order."""

    batch: int
    context: int
    budget: int
    config: LaunchConfig

    def __post_init__(self) -> None:
        torch.manual_seed(self.batch * self.context)
        slots = self.batch * self.context
        self.kept = min(self.context, self.budget)
        self.caches = [
            tuple(torch.randn(slots, KV_HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda") for _ in "kv")
            for _ in range(self.num_caches(self.batch, self.context, self.budget))
        ]
        self.q = torch.randn(self.batch, HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
        self.out = torch.full_like(self.q, float("nan"))
        self.split = split_budget(self.budget, 0.25, 4)
        self.index = SlotIndex(
            (torch.arange(self.batch + 1, device="cuda") * self.context).int(),
            torch.randperm(slots, device="cuda").int(),
            torch.zeros(self.batch + 1, dtype=torch.int32, device="cuda"),
            torch.zeros(self.batch * self.budget, dtype=torch.int32, device="cuda"),
        )
        write_sparse_indptr(self.index.kv_indptr, self.index.sparse_indptr, self.batch, self.budget)
        self.workspace = SelectWorkspace.allocate(self.batch, self.context, HEADS, self.split, "cuda", 1 << 33)
        self.attend_workspace = AttendWorkspace.allocate(
            self.batch, HEADS, KV_HEADS, HEAD_DIM, "cuda", self.config.attend
        )
        float_workspace = torch.zeros(512 << 20, dtype=torch.uint8, device="cuda")
        self.dense = self.planned(float_workspace, *self.index[:2])
        self.sparse = self.planned(float_workspace, *self.index[2:])

    @staticmethod
    def num_caches(batch: int, context: int, budget: int) -> int:
        """Layers' caches to rotate over, so that sparse layers do not find their tokens in L2."""
        return -(-COLD_BYTES // (batch * TOKEN_BYTES * min(context, budget)))

    @classmethod
    def nbytes(cls, batch: int, context: int, budget: int) -> int:
        """Device memory of the caches, in bytes."""
        return cls.num_caches(batch, context, budget) * batch * context * TOKEN_BYTES

    def planned(self, workspace: Tensor, indptr: Tensor, indices: Tensor) -> Any:
        ones = torch.ones(self.batch, dtype=torch.int32, device="cuda")
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace,
            "NHD",
            use_cuda_graph=True,
            use_tensor_cores=True,
            paged_kv_indptr_buffer=indptr,
            paged_kv_indices_buffer=indices,
            paged_kv_last_page_len_buffer=ones,
            backend="fa2",
        )
        dtype = torch.bfloat16
        wrapper.plan(indptr.cpu(), indices, ones, HEADS, KV_HEADS, HEAD_DIM, 1, q_data_type=dtype, kv_data_type=dtype)
        return wrapper

    def cache(self, layer: int) -> KVCache:
        return KVCache(*self.caches[layer % len(self.caches)], HEAD_DIM**-0.5)

    def select_layer(self, layer: int) -> SelectLayer:
        workspaces = self.workspace, self.attend_workspace
        return SelectLayer(self.q, self.cache(layer), self.index, self.out, self.split, *workspaces, self.config)

    def round(self, layer: int) -> Round:
        """The launches for the whole batch."""
        (only,) = self.select_layer(layer).rounds()
        return only

    def stages(self) -> dict[str, Stage]:
        """What to time; the argument is the layer."""
        found: dict[str, Stage] = {
            "dense": self.run_dense,
            "sparse": self.run_sparse,
            "sparse_triton": self.run_sparse_triton,
            "attend": lambda layer: self.round(layer).attend(),
            "shortlist": lambda layer: self.round(layer).shortlist(),
            "emit": lambda layer: self.round(layer).emit(),
            "finish": lambda layer: self.round(layer).finish(),
            "select": lambda layer: self.select_layer(layer).run(),
        }
        fa3 = self.fa3()
        return found | ({"dense_fa3": fa3} if fa3 else {})

    def run_dense(self, layer: int) -> Tensor:
        return self.dense.run(self.q, self.cache(layer)[:2])

    def run_sparse(self, layer: int) -> Tensor:
        return self.sparse.run(self.q, self.cache(layer)[:2])

    def run_sparse_triton(self, layer: int) -> Tensor:
        requests = Requests(*self.index[2:], 0, self.batch)
        attend(self.q, self.cache(layer), requests, self.out, self.attend_workspace, self.config.attend)
        return self.out

    def fa3(self) -> Stage | None:
        """FlashAttention-3 over the same bytes, contiguous by request; None where it is not installed."""
        try:
            from fa3_fwd_interface import flash_attn_with_kvcache
        except ImportError:
            return None
        shape = (self.batch, self.context, KV_HEADS, HEAD_DIM)
        lengths = torch.full((self.batch,), self.context, dtype=torch.int32, device="cuda")

        def run(layer: int) -> Tensor:
            keys, values = (tensor.view(shape) for tensor in self.cache(layer)[:2])
            return flash_attn_with_kvcache(self.q[:, None], keys, values, cache_seqlens=lengths)

        return run

    def step(self, lim: bool) -> None:
        """The decode attention of all layers of one step."""
        for layer in range(LAYERS):
            if not lim or layer in DENSE_LAYERS:
                self.run_dense(layer)
            elif layer in SELECT_LAYERS:
                self.select_layer(layer).run()
            else:
                self.run_sparse(layer)

    def problem_with_kernels(self) -> str:
        """What is wrong with the kernels' results for the first and last request, or an empty string."""
        self.index.sparse_indices.fill_(-1)
        self.select_layer(0).run()
        dense = self.run_dense(0).float()
        error = (self.out.float() - dense).abs().max() / dense.abs().max()
        if not error < 1e-2:
            return f"attention of the SELECT layer is off by {float(error):.2g}"
        if any(not self.set_is_exact(request) for request in {0, self.batch - 1}):
            return "wrong set"
        sparse = self.run_sparse(0).float()
        error = (self.run_sparse_triton(0).float() - sparse).abs().max() / sparse.abs().max()
        return "" if error < 1e-2 else f"the Triton kernel's sparse attention is off by {float(error):.2g}"

    def set_is_exact(self, request: int) -> bool:
        """Whether scores are within rounding and the set is what the reference makes of them."""
        kv_indptr, kv_indices, sparse_indptr, sparse_indices = self.index
        own = kv_indices[kv_indptr[request] : kv_indptr[request + 1]]
        exact = head_scores(self.q[request], self.caches[0][0][own.long()])
        found = exact.clone()
        inner = slice(self.split.sinks, self.context - self.split.recent)
        ordered = self.workspace.scores[request, :, : self.context][:, inner]
        found[:, inner] = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
        if self.context > self.budget and not torch.allclose(found, exact, rtol=0, atol=1e-3):
            return False
        chosen = select_token_set(found[None], torch.tensor([self.context], device="cuda"), self.split)
        expected = own[chosen.positions[0, : int(chosen.lengths[0])]]
        return torch.equal(expected, sparse_indices[sparse_indptr[request] :][: len(expected)])
