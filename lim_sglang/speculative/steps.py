"""The forward passes of a round, as SGLang's ``ScheduleBatch``: copies, so that the scheduler's own stays as it is."""

from __future__ import annotations

import copy
from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from torch import Tensor

from lim_sglang.speculative.round_input import RoundInput


def slots_ahead(batch: Any, width: int) -> Tensor:
    """[B, width] int64 cache slots behind each request's cached tokens; SGLang has allocated twice as many."""
    offsets = torch.arange(width, device=batch.seq_lens.device)
    table = batch.req_to_token_pool.req_to_token
    return table[batch.req_pool_indices[:, None], batch.seq_lens[:, None] + offsets].long()


def decode_step(batch: Any, tokens: Tensor, slots: Tensor, ahead: int = 0) -> Any:
    """A decode step of one token per request.

    Args:
        batch: ``seq_lens`` counts tokens whose K and V are cached.
        tokens: [B] int64.
        slots: [B] int64, where their K and V go.
        ahead: tokens that lie between the cached ones and these.
    """
    step = copy.copy(batch)
    step.forward_mode, step.spec_info = ForwardMode.DECODE, None
    step.input_ids, step.out_cache_loc = tokens, slots.contiguous()
    step.seq_lens = batch.seq_lens + ahead + 1  # in a decode step the token itself counts
    if batch.seq_lens_cpu is not None:
        step.seq_lens_cpu = batch.seq_lens_cpu + ahead + 1
        step.seq_lens_sum = int(step.seq_lens_cpu.sum())
    return step


def verify_step(batch: Any, tokens: Tensor, slots: Tensor) -> Any:
    """One pass over several tokens per request, [B, T] each, behind the cached ones."""
    step = copy.copy(batch)
    step.forward_mode = ForwardMode.TARGET_VERIFY
    step.input_ids, step.out_cache_loc = tokens.flatten(), slots.flatten()
    width = tokens.shape[1]
    positions = batch.seq_lens[:, None] + torch.arange(width, device=tokens.device)
    step.spec_info = RoundInput(width, positions=positions.flatten())
    return step
