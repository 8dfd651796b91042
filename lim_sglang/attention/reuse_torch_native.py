"""Drafts that choose no set of their own, on a CPU: every layer attends to the last step's set and the tokens since."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lim_sglang.attention.torch_native import LimTorchNativeBackend, SparseSet, attend_to_set


class ReuseTorchNativeBackend(TorchNativeAttnBackend):
    """Decode over the set that ``lim`` has chosen last, which its last SELECT layer left behind."""

    def __init__(self, model_runner: Any, lim: LimTorchNativeBackend) -> None:
        super().__init__(model_runner)
        self.lim = lim
        self.sparse_set: SparseSet

    def init_forward_metadata(self, forward_batch: Any) -> None:
        super().init_forward_metadata(forward_batch)
        chosen, table = self.lim.sparse_set, self.req_to_token_pool.req_to_token
        if chosen is None:
            raise RuntimeError("a step that reuses a set, but no step before it selected")
        rows = [
            torch.cat([slots[:count], table[row, then:now].to(slots.dtype)])
            for slots, count, row, then, now in zip(
                chosen.slots,
                chosen.lengths.tolist(),
                forward_batch.req_pool_indices.tolist(),
                self.lim.set_lengths.tolist(),
                forward_batch.seq_lens.tolist(),
                strict=True,
            )
        ]
        self.sparse_set = SparseSet(pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows]))
        self.lim.metrics.observe_reuse(forward_batch.seq_lens.tolist())

    def forward_decode(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, forward_batch: Any, save_kv_cache: bool = True
    ) -> Tensor:
        """Attend with one query token per request; as ``LimTorchNativeBackend`` in a SPARSE layer."""
        return attend_to_set(self, self.sparse_set, q, k, v, layer, forward_batch, save_kv_cache)
