"""Drafts: ordinary decode steps with lim's attention, each fed with the draft before it."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from torch import Tensor

from lim_sglang.speculative.passes import DecodePass
from lim_sglang.speculative.sampling import Drafts, SamplingRule, distribution, draw
from lim_sglang.speculative.steps import decode_step


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
