"""Dense attention that verifies drafts on a GPU: SGLang's FlashInfer backend, and split-KV attention for verifications.

FlashInfer's paged prefill is as fast, but SGLang plans it on the host, with copies that block, before every round. Here
the slots are listed on the device, at the start of the captured step, and one launch per layer reads every key once for
all tokens of a request.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend, PrefillMetadata
from torch import Tensor

from lim_kernels.attend.config import AttendConfig, verify_config
from lim_kernels.attend.launch import AttendWorkspace, Requests, attend
from lim_kernels.attend.slots import list_slots
from lim_sglang.attention.buffers import AttentionShape, allocate_on
from lim_sglang.attention.wrappers import scale_cache

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VerifyWrapper:
    """A wrapper that is called like FlashInfer's prefill wrapper.

    ``width`` query tokens per request attend to themselves and to all tokens before them.

    Attributes:
        kv_indptr: [max_batch + 1] int32, ends of the requests' slots, the ``width`` tokens' own included.
        kv_indices: [max_batch * (max_length + width)] int32.
        out: [max_batch * width, H, D], attention's output of one layer.
        workspace: scratch of split-KV attention.
    """

    width: int
    kv_indptr: Tensor
    kv_indices: Tensor
    out: Tensor
    workspace: AttendWorkspace
    config: AttendConfig

    @classmethod
    def allocate(
        cls, max_batch: int, max_length: int, width: int, shape: AttentionShape, device: torch.device
    ) -> VerifyWrapper:
        """Make the buffers for up to ``max_batch`` requests of up to ``max_length`` cached tokens."""
        heads = shape.num_qo_heads, shape.num_kv_heads, shape.head_dim
        config = verify_config(shape.heads._replace(q_len=width))
        return cls(
            width,
            torch.zeros(max_batch + 1, dtype=torch.int32, device=device),
            torch.zeros(max_batch * (max_length + width), dtype=torch.int32, device=device),
            torch.empty(max_batch * width, shape.num_qo_heads, shape.head_dim, dtype=shape.q_dtype, device=device),
            AttendWorkspace.allocate(max_batch, *heads, device, config, width),
            config,
        )

    @property
    def nbytes(self) -> int:
        """Device memory, in bytes."""
        return self.kv_indptr.nbytes + self.kv_indices.nbytes + self.out.nbytes + self.workspace.nbytes

    def forward(
        self, q: Tensor, kv_cache: tuple[Tensor, Tensor], causal: bool = True, window_left: int = -1, **scales: Any
    ) -> Tensor:
        """Attend with all query tokens: [B * width, H, D]; ``scales`` are those of FlashInfer's ``run``.

        Always causal, never with a window, whatever SGLang passes.
        """
        out = self.out[: len(q)]
        requests = Requests(self.kv_indptr, self.kv_indices, 0, len(q) // self.width, self.width)
        attend(q, scale_cache(kv_cache, **scales), requests, out, self.workspace, self.config)
        return out


class DenseFlashInferBackend(FlashInferAttnBackend):
    """The dense backend of the lossless mode: SGLang's own attention, and verifications by ``VerifyWrapper``.

    Args:
        width: tokens of a verification.
    """

    def __init__(self, model_runner: Any, width: int) -> None:
        super().__init__(model_runner, init_new_workspace=model_runner.init_new_workspace)
        self.forward_metadata: Any
        shape = AttentionShape.of_updater(self.indices_updater_decode)
        sizes = len(self.kv_last_page_len), self.max_context_len
        allocate = partial(VerifyWrapper.allocate, *sizes, width, shape)
        self.verify: VerifyWrapper = allocate_on(self.kv_last_page_len.device, allocate, *sizes)
        logger.info("lim: %d MiB for verifications", self.verify.nbytes >> 20)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int, kv_indices_buf: Tensor | None = None) -> None:
        """Make FlashInfer's buffers of captured decode steps; a verification's are there already."""
        if max_num_tokens == max_bs:
            super().init_cuda_graph_state(max_bs, max_num_tokens, kv_indices_buf)

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Prepare a step without a graph."""
        if not forward_batch.forward_mode.is_target_verify():
            super().init_forward_metadata(forward_batch)
            return
        self.init_forward_metadata_out_graph(forward_batch)
        self.init_forward_metadata_in_graph(forward_batch)

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """Prepare a step on the host, before a graph is captured or replayed; a verification needs no plan."""
        if not forward_batch.forward_mode.is_target_verify():
            super().init_forward_metadata_out_graph(forward_batch, in_capture)
            return
        self.forward_metadata = PrefillMetadata([self.verify], use_ragged=False, extend_no_prefix=False)

    def init_forward_metadata_in_graph(self, forward_batch: Any) -> None:
        """Prepare a step on the device, at its start: list the slots that a verification reads."""
        super().init_forward_metadata_in_graph(forward_batch)
        if forward_batch.forward_mode.is_target_verify():
            table, rows = self.req_to_token_pool.req_to_token, forward_batch.req_pool_indices
            verify = self.verify
            list_slots(table, rows, forward_batch.seq_lens, verify.width, verify.kv_indptr, verify.kv_indices)
