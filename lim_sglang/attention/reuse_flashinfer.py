"""Drafts that choose no set of their own, on a GPU: every layer attends to the last step's set and the tokens since."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from sglang.srt.layers.attention.flashinfer_backend import DecodeMetadata, FlashInferAttnBackend
from torch import Tensor

from lim_kernels.decode.slots import extend_sets
from lim_sglang.attention.flashinfer import LimFlashInferBackend
from lim_sglang.attention.wrappers import AttentionShape, SparseWrappers


class ReuseFlashInferBackend(FlashInferAttnBackend):
    """Decode over the set that ``lim`` has chosen last, which its last SELECT layer left in its buffers.

    Nothing is planned for a step, and the step after a chosen set's reads the set, the token that the set's step fed
    included, and all tokens fed since: ``most`` at most.
    """

    def __init__(self, model_runner: Any, lim: LimFlashInferBackend, most: int) -> None:
        super().__init__(model_runner, skip_prefill=True, init_new_workspace=model_runner.init_new_workspace)
        self.forward_metadata: Any
        self.lim = lim
        self.most = lim.split.budget + most
        max_batch, device = len(self.kv_last_page_len), self.kv_last_page_len.device
        indices = torch.zeros(max_batch * self.most, dtype=torch.int32, device=device)
        self.buffers = replace(
            lim.buffers, sparse_indptr=torch.zeros_like(lim.buffers.sparse_indptr), sparse_indices=indices
        )
        shape = AttentionShape.of_updater(self.indices_updater_decode)
        self.wrappers = SparseWrappers(self.buffers, self.workspace_buffer, self.most, shape)
        self.set_lengths = lim.keep_lengths()

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int, kv_indices_buf: Tensor | None = None) -> None:
        """The buffers are there already."""

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """A step without a graph."""
        self.forward_metadata = DecodeMetadata([self.wrappers.wrapper(forward_batch.batch_size, captured=False)])
        self.init_forward_metadata_in_graph(forward_batch)
        self._observe(forward_batch)

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """On the host, before a graph is captured or replayed."""
        if in_capture:
            self.forward_metadata = DecodeMetadata([self.wrappers.wrapper(forward_batch.batch_size, captured=True)])
        else:
            self._observe(forward_batch)

    def init_forward_metadata_in_graph(self, forward_batch: Any) -> None:
        """At the start of the step, on the device."""
        sets = self.lim.buffers.sparse_indptr, self.lim.buffers.sparse_indices, self.set_lengths
        extend_sets(
            sets,
            self.req_to_token_pool.req_to_token,
            forward_batch.req_pool_indices,
            forward_batch.seq_lens,
            self.most,
            self.buffers.sparse_indptr,
            self.buffers.sparse_indices,
        )

    def _observe(self, forward_batch: Any) -> None:
        self.lim.metrics.observe_reuse(forward_batch.seq_lens_cpu[: forward_batch.batch_size].tolist())
