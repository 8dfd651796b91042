"""Dense attention that verifies drafts, on SGLang's torch_native backend, which knows no verification."""

from __future__ import annotations

from typing import Any

from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from torch import Tensor

from lim_kernels.attend.reference import verify_attention
from lim_sglang.attention.torch_native import write_kv


class DenseTorchNativeBackend(TorchNativeAttnBackend):
    """The dense backend of the lossless mode: SGLang's own attention, and verifications by the reference."""

    def forward_extend(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, forward_batch: Any, save_kv_cache: bool = True
    ) -> Tensor:
        """Attend with a prompt's tokens, or with the tokens of a verification.

        Args:
            q: [tokens, H * D] (or already split by heads), k, v: the tokens' keys and values.
            layer: SGLang's ``RadixAttention``.

        Returns:
            [tokens, H * D] in the dtype of ``q``.
        """
        if not forward_batch.forward_mode.is_target_verify():
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        if save_kv_cache:
            write_kv(self, k, v, layer, forward_batch)
        output = verify_attention(
            q.view(forward_batch.batch_size, -1, layer.tp_q_head_num, layer.qk_head_dim),
            self.token_to_kv_pool.get_key_buffer(layer.layer_id),
            self.token_to_kv_pool.get_value_buffer(layer.layer_id),
            self.req_to_token_pool.req_to_token,
            forward_batch.req_pool_indices,
            forward_batch.seq_lens,
            layer.scaling,
        )
        return output.to(q.dtype).flatten(0, 1).flatten(1)
