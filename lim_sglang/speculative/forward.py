"""The steps of a round, each one forward of SGLang's ``ModelRunner``, and the drafter, which chains several.

One runner, one cache, three kinds of steps. Which one the runner takes hangs on the attention backend and the CUDA
graphs that it holds at the moment, and on what its layers multiply by; ``StepKind.swap_in`` exchanges all for a block::

    step                 attention                      graphs
    verification         dense (the runner's own)       the runner's own, T tokens per request
    plain step           dense (the runner's own)       StepKind.graphs, one token per request
    draft step           lim                            StepKind.graphs, one token per request
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from torch import Tensor

from lim_sglang.speculative.sampling import Drafts, SamplingRule, add_bias, distribution, sample
from lim_sglang.speculative.spec_input import RoundInput

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

    from lim_sglang.speculative.draft_weights import DraftWeights


@dataclass(frozen=True)
class StepKind:
    """A kind of steps of one token per request, beside the verifications that the runner's own graphs are for.

    Attributes:
        runner: whose steps they are.
        attention: the backend that attends in these steps, over the runner's cache.
        graphs: SGLang's ``DecodeCudaGraphRunner`` of these steps; None where none are captured.
        weights: copies that the layers multiply by in these steps; None for the model's own weights.
    """

    runner: ModelRunner
    attention: Any
    graphs: Any = None
    weights: DraftWeights | None = None

    def capture_graphs(self) -> StepKind:
        """The same kind with graphs, where the runner has captured its own.

        Graphs decide by the runner's algorithm whether they verify: without one, they decode.
        """
        from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

        runner, own = self.runner, self.runner.decode_cuda_graph_runner
        if own is None or own is runner.eager_runner:
            return self
        algorithm, runner.spec_algorithm = runner.spec_algorithm, SpeculativeAlgorithm.NONE
        try:
            with self.swap_in():
                return replace(self, graphs=type(own)(runner, attn_backend=self.attention))
        finally:
            runner.spec_algorithm = algorithm

    @contextmanager
    def swap_in(self) -> Iterator[None]:
        """A block in which the runner's steps are of this kind."""
        runner = self.runner
        kept = runner.attn_backend, runner.decode_cuda_graph_runner
        runner.attn_backend, runner.decode_cuda_graph_runner = self.attention, self.graphs
        try:
            with self.weights.swap_in() if self.weights else nullcontext():
                yield
        finally:
            runner.attn_backend, runner.decode_cuda_graph_runner = kept


def run_step(runner: ModelRunner, step: ScheduleBatch) -> Tensor:
    """Run one step and return its logits, one row per token."""
    batch = ForwardBatch.init_new(step, runner, return_hidden_states_before_norm=False)
    logits: Tensor = runner.forward(batch).logits_output.next_token_logits
    return logits


def slots_ahead(batch: ScheduleBatch, width: int) -> Tensor:
    """[B, width] int64 cache slots behind each request's cached tokens; SGLang has allocated twice as many."""
    offsets = torch.arange(width, device=batch.seq_lens.device)
    table = batch.req_to_token_pool.req_to_token
    return table[batch.req_pool_indices[:, None], batch.seq_lens[:, None] + offsets].long()


def decode_step(batch: ScheduleBatch, tokens: Tensor, slots: Tensor, ahead: int = 0) -> ScheduleBatch:
    """The batch of a step of one token per request.

    Args:
        batch: ``seq_lens`` counts tokens whose K and V are cached.
        tokens: [B] int64.
        slots: [B] int64, where their K and V go.
        ahead: how many tokens lie between the cached ones and these.
    """
    step = copy.copy(batch)
    step.forward_mode, step.spec_info = ForwardMode.DECODE, None
    step.input_ids, step.out_cache_loc = tokens, slots.contiguous()
    step.seq_lens = batch.seq_lens + ahead + 1  # in a decode step the token itself counts
    if batch.seq_lens_cpu is not None:
        step.seq_lens_cpu = batch.seq_lens_cpu + ahead + 1
        step.seq_lens_sum = int(step.seq_lens_cpu.sum())
    return step


def verify_step(batch: ScheduleBatch, tokens: Tensor, slots: Tensor) -> ScheduleBatch:
    """The batch of a step of ``T`` tokens per request behind the cached ones; ``tokens`` and ``slots`` are [B, T]."""
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
        steps: the drafts' steps.
        generator: of all random numbers, alike on all ranks; None for the device's own.
    """

    def __init__(self, steps: StepKind, generator: torch.Generator | None = None) -> None:
        self.steps = steps
        self.generator = generator

    def draft(
        self, batch: ScheduleBatch, last_tokens: Tensor, slots: Tensor, rule: SamplingRule, num_drafts: int
    ) -> Drafts:
        """Draft for a batch.

        Args:
            batch: its ``seq_lens`` do not count the last output tokens; it stays as it is.
            last_tokens: [B] int64 the last output tokens.
            slots: [B, >= k] cache slots of the last output tokens and the drafts.
            rule: how the requests sample.
            num_drafts: k, at least 1.
        """
        tokens, proposals = [last_tokens], []
        with self.steps.swap_in():
            for number in range(num_drafts):
                step = decode_step(batch, tokens[-1], slots[:, number], ahead=number)
                logits = run_step(self.steps.runner, step)[:, None]
                add_bias(logits, batch.sampling_info)
                if rule.is_greedy:
                    tokens.append(logits[:, 0].argmax(-1))
                else:
                    probs = distribution(logits, rule)[:, 0]
                    proposals.append(probs)
                    tokens.append(sample(probs, self.generator))
        return Drafts(torch.stack(tokens[1:], 1), torch.stack(proposals, 1) if proposals else None)
