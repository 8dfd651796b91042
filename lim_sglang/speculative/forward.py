"""The steps of a round: SGLang's ``ModelRunner`` with another attention, batches for it, and the chain of drafts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from torch import Tensor

from lim_sglang.speculative.sampling import Drafts, SamplingRule, distribution, draw
from lim_sglang.speculative.spec_input import RoundInput


@dataclass(frozen=True)
class DecodePass:
    """Steps of one token per request, beside the verifications that the runner's own graphs are for.

    Attributes:
        runner: SGLang's ``ModelRunner``.
        attention: the backend that attends in these steps, over the runner's cache.
        graphs: SGLang's ``DecodeCudaGraphRunner`` of these steps; None where none are captured.
    """

    runner: Any
    attention: Any
    graphs: Any = None

    def captured(self) -> DecodePass:
        """The same with graphs, where the runner has captured its own."""
        graphs = self.runner.decode_cuda_graph_runner
        without = graphs is None or graphs is self.runner.eager_runner
        return DecodePass(self.runner, self.attention, None if without else self._capture(type(graphs)))

    def _capture(self, graph_runner: type) -> Any:
        """Graphs decide by the runner's algorithm whether they verify: without one, they decode."""
        from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

        kept = self.runner.spec_algorithm
        self.runner.spec_algorithm = SpeculativeAlgorithm.NONE
        try:
            with self.bound():
                return graph_runner(self.runner, attn_backend=self.attention)
        finally:
            self.runner.spec_algorithm = kept

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Let the runner's steps be of this kind."""
        runner = self.runner
        kept = runner.attn_backend, runner.decode_cuda_graph_runner
        runner.attn_backend, runner.decode_cuda_graph_runner = self.attention, self.graphs
        try:
            yield
        finally:
            runner.attn_backend, runner.decode_cuda_graph_runner = kept


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


class LimDrafter:
    """Drafts by the model itself with lim's sparse attention; their K and V are overwritten by the verification.

    Args:
        steps: how the drafts' steps run.
        generator: of all draws, alike on all ranks; None for the device's own.
    """

    def __init__(self, steps: DecodePass, generator: torch.Generator | None = None) -> None:
        self.steps = steps
        self.generator = generator

    def draft(self, batch: Any, bonus: Tensor, slots: Tensor, rule: SamplingRule, num_drafts: int) -> Drafts:
        """Draft for a batch.

        Args:
            batch: SGLang's ``ScheduleBatch``, ``seq_lens`` without the bonus tokens; it stays as it is.
            bonus: [B] int64 the last output tokens.
            slots: [B, >= k] cache slots of the bonus tokens and the drafts.
            rule: How the requests sample.
            num_drafts: k, at least 1.
        """
        tokens, proposals = [bonus], []
        with self.steps.bound():
            for number in range(num_drafts):
                logits = self._logits(decode_step(batch, tokens[-1], slots[:, number], ahead=number))
                if rule.is_greedy:
                    tokens.append(logits.argmax(-1))
                else:
                    probs = distribution(logits[:, None], rule)[:, 0]
                    proposals.append(probs)
                    tokens.append(draw(probs, self.generator))
        return Drafts(torch.stack(tokens[1:], 1), torch.stack(proposals, 1) if proposals else None)

    def _logits(self, step: Any) -> Tensor:
        """[B, V] logits after a step, with what SGLang adds to them whatever came before."""
        runner = self.steps.runner
        forward_batch = ForwardBatch.init_new(step, runner, return_hidden_states_before_norm=False)
        logits: Tensor = runner.forward(forward_batch).logits_output.next_token_logits
        bias = step.sampling_info.logit_bias
        return logits if bias is None else logits + bias
