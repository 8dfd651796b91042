"""LessIsMore on SGLang's FlashInfer backend, for NVIDIA GPUs; prefill is FlashInfer's own.

One decode step: SGLang plans the dense wrapper on the host and captures or replays the layers. In the graph,
``init_forward_metadata_in_graph`` writes how many slots each request's set has. Then every layer takes
its wrapper by ``_get_wrapper_idx``: in DENSE layers FlashInfer attends to everything; in a SELECT layer a kernel does,
and leaves the scores behind, from which the selection kernels write the set's slots; in SPARSE layers
FlashInfer or a split-KV kernel, to those slots; in WINDOW layers SGLang's own wrapper, planned for the window. The
slots are read from the dense wrapper's list, which the step owns, and not from ``req_to_token``, which the scheduler
may already be rewriting for the next step.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any

from sglang.srt.layers.attention.flashinfer_backend import DecodeMetadata, FlashInferAttnBackend

from lim_kernels.select.launch import LaunchConfig, write_sparse_indptr
from lim_kernels.select.shard import HeadShard
from lim_sglang.attention.buffers import SPARSE_LAUNCH, AttentionShape, StepBuffers, allocate_on
from lim_sglang.attention.wrappers import SelectWrapper, SparseWrappers
from lim_sglang.config import LimConfig
from lim_sglang.host.finders import asks_for_lossless
from lim_sglang.host.loaded import check_heads
from lim_sglang.layer_plan import LayerPlan, LayerRole
from lim_sglang.metrics import DecodeMetrics

logger = logging.getLogger(__name__)


class LimFlashInferBackend(FlashInferAttnBackend):
    """Dense prefill as SGLang does it; decode by layer plan."""

    def __init__(
        self,
        model_runner: Any,
        config: LimConfig,
        plan: LayerPlan,
        metrics: DecodeMetrics,
        shard: HeadShard | None = None,
    ) -> None:
        super().__init__(model_runner, init_new_workspace=model_runner.init_new_workspace)
        self.forward_metadata: Any
        if asks_for_lossless(model_runner.server_args):
            # Drafts are planned faster than they run, and a plan leaves from memory that the next one writes: a step
            # may get the plan of a later draft. FlashInfer's other kernel reads out of bounds where that one is longer.
            self.decode_use_tensor_cores = True
        self.plan = plan
        self.parts = config.parts
        self.metrics = metrics
        # SGLang's wrappers, then lim's; where layers have windows, SGLang's first one is for those.
        host = self.num_wrappers
        self.dense_wrapper = host - 1
        self.wrapper_of = {LayerRole.WINDOW: 0, LayerRole.DENSE: host - 1, LayerRole.SELECT: host}
        self.wrapper_of[LayerRole.SPARSE] = host + 1
        shape = AttentionShape.of_updater(self.indices_updater_decode)
        check_heads(shape.heads, self.kv_last_page_len.device, (LaunchConfig().attend, SPARSE_LAUNCH))
        sizes = len(self.kv_last_page_len), self.max_context_len
        allocate = partial(StepBuffers.allocate, *sizes, self.parts, shape, shard=shard)
        self.buffers: StepBuffers = allocate_on(self.kv_last_page_len.device, allocate, *sizes)
        self.sparse = SparseWrappers(self.buffers, self.workspace_buffer, config.budget, shape)
        logger.info("lim: %d MiB beyond the dense backend", self.buffers.nbytes >> 20)

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Prepare a step without a graph; within the budget every set holds all tokens, and SGLang's wrapper serves."""
        super().init_forward_metadata(forward_batch)
        mode = forward_batch.forward_mode
        if mode.is_decode():
            if int(forward_batch.seq_lens_cpu.max()) > self.parts.budget:
                self._add_wrappers(forward_batch.batch_size, for_graph=False)
                self.init_forward_metadata_in_graph(forward_batch)
            self._observe(forward_batch)
        elif mode.is_mixed():
            lengths = zip(forward_batch.extend_seq_lens_cpu, forward_batch.extend_prefix_lens_cpu, strict=True)
            self.metrics.observe_mixed(sum(new == 1 and cached > 0 for new, cached in lengths))

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """Prepare a step on the host, before a graph is captured or replayed."""
        super().init_forward_metadata_out_graph(forward_batch, in_capture)
        if not forward_batch.forward_mode.is_decode():
            return
        if in_capture:
            self._add_wrappers(forward_batch.batch_size, for_graph=True)
        else:
            self._observe(forward_batch)

    def init_forward_metadata_in_graph(self, forward_batch: Any) -> None:
        """Prepare a step on the device, at its start: write the ends of the requests' sets."""
        super().init_forward_metadata_in_graph(forward_batch)
        if forward_batch.forward_mode.is_decode():
            dense = self.forward_metadata.decode_wrappers[self.dense_wrapper]
            batch = forward_batch.batch_size
            write_sparse_indptr(dense._paged_kv_indptr_buf, self.buffers.sparse_indptr, batch, self.parts.budget)

    def _get_wrapper_idx(self, layer: Any) -> int:
        """The number of the wrapper that attends in a layer; prefill asks too, and gets SGLang's own."""
        metadata = self.forward_metadata
        if not isinstance(metadata, DecodeMetadata) or len(metadata.decode_wrappers) == self.num_wrappers:
            return int(super()._get_wrapper_idx(layer))
        return self.wrapper_of[self.plan.role(layer.layer_id)]

    def _add_wrappers(self, batch: int, *, for_graph: bool) -> None:
        """Put lim's wrappers behind SGLang's in this step's metadata, not into SGLang's own lists."""
        host = self.forward_metadata.decode_wrappers
        select = SelectWrapper(self.buffers, self.parts, host[self.dense_wrapper])
        sparse = self.sparse.wrapper(batch, for_graph=for_graph)
        self.forward_metadata = replace(self.forward_metadata, decode_wrappers=[*host, select, sparse])

    def _observe(self, forward_batch: Any) -> None:
        self.metrics.observe_decode(forward_batch.seq_lens_cpu[: forward_batch.batch_size].tolist())
