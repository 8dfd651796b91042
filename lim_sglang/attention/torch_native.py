"""LessIsMore on SGLang's torch_native backend: the reference, serving on a CPU.

One decode step: ``init_forward_metadata`` forgets the last step's set; DENSE layers attend to everything; a SELECT
layer attends to everything and chooses the set; SPARSE layers gather only the set's rows of the KV cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch import Tensor

from lim_kernels.select.reference import head_scores, select_token_set
from lim_kernels.select.shard import HeadShard
from lim_sglang.config import LimConfig
from lim_sglang.layer_plan import LayerPlan, LayerRole
from lim_sglang.metrics import DecodeMetrics


class SparseSet(NamedTuple):
    """The set of one SELECT layer, as cache slots.

    Attributes:
        slots: [B, K] slots in ascending position order; entries from ``lengths`` on are never read.
        lengths: [B] int64, ``min(n, K)``.
    """

    slots: Tensor
    lengths: Tensor


def write_kv(backend: TorchNativeAttnBackend, k: Tensor, v: Tensor, layer: Any, forward_batch: Any) -> None:
    """Put the step's keys and values where SGLang has made room for them."""
    location = KVWriteLoc(forward_batch.out_cache_loc, backend.swa_out_cache_loc)
    backend.token_to_kv_pool.set_kv_buffer(layer, location, k, v)


class LimTorchNativeBackend(TorchNativeAttnBackend):
    """Dense prefill as SGLang does it; decode by layer plan."""

    def __init__(
        self,
        model_runner: Any,
        config: LimConfig,
        plan: LayerPlan,
        metrics: DecodeMetrics,
        shard: HeadShard | None = None,
    ) -> None:
        super().__init__(model_runner)
        self.shard = shard
        self.plan = plan
        self.parts = config.parts
        self.metrics = metrics
        self.sparse_set: SparseSet | None = None

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """The length of rows that are no requests: DP attention fills up a decode batch with them."""
        return 1

    get_cpu_graph_seq_len_fill_value = get_cuda_graph_seq_len_fill_value  # SGLang 0.5.23 asks by this name

    def init_forward_metadata(self, forward_batch: Any) -> None:
        super().init_forward_metadata(forward_batch)
        self.sparse_set = None
        mode = forward_batch.forward_mode
        if mode.is_decode():
            self.metrics.observe_decode(forward_batch.seq_lens.tolist())
        elif mode.is_mixed():
            decoding = (forward_batch.extend_seq_lens == 1) & (forward_batch.extend_prefix_lens > 0)
            self.metrics.observe_mixed(int(decoding.sum()))

    def forward_decode(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, forward_batch: Any, save_kv_cache: bool = True
    ) -> Tensor:
        """Attend with one query token per request.

        Args:
            q: [B, H * D] (or already split by heads), k, v: the current tokens' keys and values.
            layer: SGLang's ``RadixAttention``.

        Returns:
            [B, H * D] in the dtype of ``q``.
        """
        role = self.plan.role(layer.layer_id)
        if role is LayerRole.SPARSE:
            return self._attend_to_set(q, k, v, layer, forward_batch, save_kv_cache)
        output = super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
        if role is LayerRole.SELECT:
            self.sparse_set = self._select(q, layer, forward_batch)
        return output

    def _select(self, q: Tensor, layer: Any, forward_batch: Any) -> SparseSet:
        """The token set that this layer's queries choose; the current token's key is in the cache already."""
        seq_lens = forward_batch.seq_lens
        longest = int(seq_lens.max())
        slots = self.req_to_token_pool.req_to_token[forward_batch.req_pool_indices, :longest]  # [B, N]
        if longest <= self.parts.budget:
            return SparseSet(slots, seq_lens)
        scores = self._scores(q, layer, slots, seq_lens)
        token_set = select_token_set(scores, seq_lens, self.parts, self.shard)
        return SparseSet(slots.gather(1, token_set.positions.clamp(min=0)), token_set.lengths)

    def _scores(self, q: Tensor, layer: Any, slots: Tensor, seq_lens: Tensor) -> Tensor:
        """[B, H, N] float32; rows of requests within the budget stay zero and are never ranked."""
        keys = self.token_to_kv_pool.get_key_buffer(layer.layer_id)  # [slots, Hk, D]
        queries = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)  # [B, H, D]
        scores = torch.zeros(*queries.shape[:2], slots.shape[1], dtype=torch.float32)
        for row, length in enumerate(seq_lens.tolist()):
            if length > self.parts.budget:
                scores[row, :, :length] = head_scores(queries[row], keys[slots[row, :length]])
        return scores

    def _attend_to_set(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, forward_batch: Any, save_kv_cache: bool
    ) -> Tensor:
        """The host's dense decode over a table that holds only the set's slots."""
        if self.sparse_set is None:
            raise RuntimeError(f"layer {layer.layer_id} is sparse, but no layer before it selected in this step")
        if save_kv_cache:
            write_kv(self, k, v, layer, forward_batch)
        queries = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        output = queries.new_empty(len(queries), layer.tp_q_head_num, layer.v_head_dim)
        self._run_sdpa_forward_decode(
            queries,
            output,
            self.token_to_kv_pool.get_key_buffer(layer.layer_id),
            self.token_to_kv_pool.get_value_buffer(layer.layer_id),
            self.sparse_set.slots,
            torch.arange(len(queries)),
            self.sparse_set.lengths,
            scaling=layer.scaling,
            enable_gqa=layer.tp_q_head_num != layer.tp_k_head_num,
        )
        return output.flatten(1)
