"""LessIsMore on SGLang's FlashInfer backend, for NVIDIA GPUs; prefill is FlashInfer's own.

One decode step: SGLang plans the dense wrapper on the host and captures or replays the layers. In the graph,
``init_forward_metadata_in_graph`` writes how many slots each request's set has; DENSE layers attend to everything; a
SELECT layer attends to everything, then its queries choose the set, whose slots the selection kernels write; SPARSE
layers attend to those slots. The slots are read from the dense wrapper's list, which the step owns, and not from
``req_to_token``, which the scheduler may already be rewriting for the next step.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from sglang.srt.layers.attention.flashinfer_backend import DecodeMetadata, FlashInferAttnBackend
from torch import Tensor

from lim_kernels.select.launch import SelectWorkspace, select_slots, write_sparse_indptr
from lim_sglang.attention.sparse_executor import AttentionShape, FlashInferSparseExecutor
from lim_sglang.config import LimConfig
from lim_sglang.layer_plan import LayerPlan, LayerRole
from lim_sglang.metrics import DecodeMetrics

logger = logging.getLogger(__name__)

DENSE_WRAPPER, SPARSE_WRAPPER = 0, 1
WORKSPACE_BYTES = 256 << 20  # larger batches select in several rounds


class LimFlashInferBackend(FlashInferAttnBackend):
    """Dense prefill as SGLang does it; decode by layer plan."""

    def __init__(self, model_runner: Any, config: LimConfig, plan: LayerPlan, metrics: DecodeMetrics) -> None:
        super().__init__(model_runner, init_new_workspace=model_runner.init_new_workspace)
        self.forward_metadata: Any
        self.plan = plan
        self.split = config.split
        self.metrics = metrics
        updater = self.indices_updater_decode
        max_batch = len(self.kv_last_page_len)
        device = self.kv_last_page_len.device
        self.sparse_indptr = torch.zeros(max_batch + 1, dtype=torch.int32, device=device)
        self.sparse_indices = torch.zeros(max_batch * config.budget, dtype=torch.int32, device=device)
        self.workspace = SelectWorkspace.allocate(
            max_batch, self.max_context_len, updater.num_qo_heads, self.split, device, WORKSPACE_BYTES
        )
        shape = AttentionShape(
            updater.num_qo_heads,
            updater.num_kv_heads,
            updater.head_dim,
            updater.q_data_type,
            updater.data_type,
            self.decode_split_tile_size,
            self.disable_cuda_graph_kv_split,
        )
        self.sparse = FlashInferSparseExecutor(
            self.workspace_buffer, self.sparse_indptr, self.sparse_indices, config.budget, shape
        )
        logger.info("lim: %d MiB beyond the dense backend", (self.workspace.nbytes + self.sparse.nbytes) >> 20)

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """A step without a graph."""
        super().init_forward_metadata(forward_batch)
        mode = forward_batch.forward_mode
        if mode.is_decode():
            self._add_sparse_wrapper(forward_batch.batch_size)
            self.init_forward_metadata_in_graph(forward_batch)
            self._observe(forward_batch)
        elif mode.is_mixed():
            lengths = zip(forward_batch.extend_seq_lens_cpu, forward_batch.extend_prefix_lens_cpu, strict=True)
            self.metrics.observe_mixed(sum(new == 1 and cached > 0 for new, cached in lengths))

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """On the host, before a graph is captured or replayed."""
        super().init_forward_metadata_out_graph(forward_batch, in_capture)
        if not forward_batch.forward_mode.is_decode():
            return
        if in_capture:
            self._add_sparse_wrapper(forward_batch.batch_size)
        else:
            self._observe(forward_batch)

    def init_forward_metadata_in_graph(self, forward_batch: Any) -> None:
        """At the start of the step, on the device."""
        super().init_forward_metadata_in_graph(forward_batch)
        if forward_batch.forward_mode.is_decode():
            dense = self.forward_metadata.decode_wrappers[DENSE_WRAPPER]
            batch = forward_batch.batch_size
            write_sparse_indptr(dense._paged_kv_indptr_buf, self.sparse_indptr, batch, self.split.budget)

    def forward_decode(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, forward_batch: Any, save_kv_cache: bool = True, **kwargs: Any
    ) -> Tensor:
        """Attend with one query token per request; ``_get_wrapper_idx`` picks dense or sparse by the layer's role.

        Args:
            q: [B, H * D] (or already split by heads), k, v: the current tokens' keys and values.
            layer: SGLang's ``RadixAttention``.

        Returns:
            [B, H * D] in the dtype of ``q``.
        """
        output = super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)
        if self.plan.role(layer.layer_id) is LayerRole.SELECT and self._has_sparse_wrapper():
            self._select(q, layer)
        return output

    def _get_wrapper_idx(self, layer: Any) -> int:
        """Prefill asks too, and always gets the dense wrapper."""
        sparse = self.plan.role(layer.layer_id) is LayerRole.SPARSE and self._has_sparse_wrapper()
        return SPARSE_WRAPPER if sparse else DENSE_WRAPPER

    def _has_sparse_wrapper(self) -> bool:
        metadata = self.forward_metadata
        return isinstance(metadata, DecodeMetadata) and len(metadata.decode_wrappers) > SPARSE_WRAPPER

    def _add_sparse_wrapper(self, batch: int) -> None:
        """Put the sparse wrapper beside the dense one in this step's metadata, without touching SGLang's lists."""
        metadata = self.forward_metadata
        dense = metadata.decode_wrappers[DENSE_WRAPPER]
        self.forward_metadata = DecodeMetadata([dense, self.sparse.wrapper(batch)])

    def _select(self, q: Tensor, layer: Any) -> None:
        """Write the slots of the set that this layer's queries choose; the current key is in the cache already."""
        dense = self.forward_metadata.decode_wrappers[DENSE_WRAPPER]
        keys = self.token_to_kv_pool.get_key_buffer(layer.layer_id)
        select_slots(
            q.contiguous().view(-1, layer.tp_q_head_num, layer.head_dim),
            keys,
            dense._paged_kv_indptr_buf,
            dense._paged_kv_indices_buf,
            self.sparse_indptr,
            self.sparse_indices,
            self.split,
            self.workspace,
        )

    def _observe(self, forward_batch: Any) -> None:
        self.metrics.observe_decode(forward_batch.seq_lens_cpu[: forward_batch.batch_size].tolist())
