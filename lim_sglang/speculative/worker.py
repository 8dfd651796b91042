"""A round of the lossless mode in SGLang's scheduler: draft with lim, verify with dense attention, accept."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
from torch import Tensor

from lim_sglang.host import compat
from lim_sglang.speculative.drafter import LimDrafter
from lim_sglang.speculative.requests import may_draft
from lim_sglang.speculative.round_input import RoundInput
from lim_sglang.speculative.sampling import Drafts, SamplingRule, Verdict, verify
from lim_sglang.speculative.steps import decode_step, slots_ahead, verify_step

Publish = Callable[[Tensor], None] | None


class LimSpecWorker(BaseSpecWorker):
    """SGLang's scheduler takes it for its model worker; drafts and verification share the target's runner and cache."""

    def __init__(self, server_args: Any, target_worker: Any, **_: Any) -> None:
        super().__init__()
        self.server_args = server_args
        self._target_worker = target_worker
        self.width = int(compat.effective_args(server_args).speculative_num_draft_tokens)
        self.speculative_num_draft_tokens = self.width
        self.speculative_num_steps = self.width - 1
        self.adaptive_controller = None
        self.runner = target_worker.model_runner
        self.drafter: LimDrafter

    # What SGLang's start asks for

    @property
    def draft_worker(self) -> Any:
        """None: there is no draft model. SGLang 0.5.16 asks it for its KV pool all the same."""
        return compat.no_draft_worker()

    def alloc_memory_pool(
        self, memory_pool_config: Any = None, req_to_token_pool: Any = None, token_to_kv_pool_allocator: Any = None
    ) -> None:
        self.req_to_token_pool = req_to_token_pool
        self.token_to_kv_pool_allocator = token_to_kv_pool_allocator

    def init_attention_backends(self) -> None:
        """lim's backend for drafts; the runner's own verifies."""
        from lim_sglang.attention import build_sparse

        attention = build_sparse(self.runner)
        self.drafter = LimDrafter(self.runner, attention, self.width - 1)
        self.metrics = attention.metrics.add_rounds()

    def init_cuda_graphs(self) -> None:
        """None are captured yet."""

    def update_weights_from_disk(self, recv_req: Any) -> tuple[bool, str]:
        return True, "The drafts have no weights of their own."

    update_weights_from_ipc = update_weights_from_disk

    def update_weights_from_tensor(self, recv_req: Any) -> Any:
        return self.target_worker.update_weights_from_tensor(recv_req)

    @property
    def spec_v2_attn_backends(self) -> tuple[Any, ...]:
        return (self.runner.attn_backend, self.drafter.attention)

    # Steps

    def forward_batch_generation(self, batch: Any, on_publish: Publish = None, **_: Any) -> GenerationBatchResult:
        if not batch.forward_mode.is_decode():
            return self._extend(batch, on_publish)
        drafting = [may_draft(req) for req in batch.reqs]
        return self._round(batch, drafting, on_publish) if any(drafting) else self._plain_step(batch, on_publish)

    def on_verify_complete_cpu(self, num_correct_drafts_per_req: list[int], batch_size: int = 0) -> None:
        self.metrics.observe_accepted(sum(num_correct_drafts_per_req))

    def _extend(self, batch: Any, on_publish: Publish) -> GenerationBatchResult:
        """Prefill, as without drafts."""
        result = self.target_worker.forward_batch_generation(batch)
        lengths = batch.seq_lens.clone()
        if on_publish is not None:
            on_publish(lengths)
        accepted = torch.zeros_like(lengths)
        return self._complete(result, Verdict(result.next_token_ids.long()[:, None], accepted), lengths, self.width)

    def _plain_step(self, batch: Any, on_publish: Publish) -> GenerationBatchResult:
        """One token per request by dense attention, where no request may draft."""
        step = decode_step(batch, batch.spec_info.bonus_tokens, slots_ahead(batch, 1)[:, 0])
        self.metrics.observe_plain_step()
        result = self.target_worker.forward_batch_generation(step, is_verify=True)
        return self._accept(result, batch, None, [False] * len(batch.reqs), on_publish)

    def _round(self, batch: Any, drafting: list[bool], on_publish: Publish) -> GenerationBatchResult:
        """Draft, then verify all drafts in one pass, which writes K and V of all its tokens anew."""
        bonus, slots = batch.spec_info.bonus_tokens, slots_ahead(batch, self.width)
        drafts = self.drafter.draft(batch, bonus, slots, sampling_rule(batch.sampling_info))
        step = verify_step(batch, torch.cat([bonus[:, None], drafts.tokens], 1), slots)
        self.metrics.observe_round(sum(drafting), self.width - 1)
        result = self.target_worker.forward_batch_generation(step, is_verify=True)
        return self._accept(result, batch, drafts, drafting, on_publish)

    def _accept(
        self, result: Any, batch: Any, drafts: Drafts | None, drafting: list[bool], on_publish: Publish
    ) -> GenerationBatchResult:
        output, info = result.logits_output, batch.sampling_info
        logits = output.next_token_logits.unflatten(0, (len(drafting), -1))
        self._adjust(logits, info)
        width = logits.shape[1]
        limits = torch.tensor(drafting, device=logits.device).long() * (width - 1)
        verdict = verify(logits, drafts, sampling_rule(info), limits)
        lengths = batch.seq_lens + verdict.accepted + 1
        if on_publish is not None:
            on_publish(lengths)
        if batch.return_logprob:
            compat.add_logprobs(batch, output, verdict.tokens.flatten(), width)
        return self._complete(result, verdict, lengths, width)

    def _adjust(self, logits: Tensor, info: Any) -> None:
        """Do to [B, T, V] logits, in place, all that SGLang does to them before it samples.

        Penalties, grammars and custom processors depend on the tokens before, so they hold for the first token only; a
        request that has any of them accepts no drafts.
        """
        first = SimpleNamespace(next_token_logits=logits[:, 0].contiguous())
        self.runner._preprocess_logits(first, info)
        self.runner.sampler._preprocess_logits(first.next_token_logits, info)
        logits[:, 0] = first.next_token_logits
        if info.logit_bias is not None:
            logits[:, 1:] += info.logit_bias[:, None]

    def _complete(self, result: Any, verdict: Verdict, lengths: Tensor, width: int) -> GenerationBatchResult:
        """SGLang's result of a step: rows of ``width`` tokens per request, the accepted ones first."""
        result.next_token_ids = verdict.tokens.flatten().int()
        result.accept_lens = (verdict.accepted + 1).int()
        result.new_seq_lens = lengths
        result.next_draft_input = RoundInput(self.width, bonus_tokens=verdict.last)
        result.speculative_num_draft_tokens = width
        return result


def sampling_rule(info: Any) -> SamplingRule:
    """The rule of SGLang's ``SamplingBatchInfo``."""
    return SamplingRule(
        temperatures=info.temperatures,
        top_ks=info.top_ks,
        top_ps=info.top_ps,
        min_ps=info.min_ps,
        is_greedy=info.is_all_greedy,
        is_filtered=info.need_top_p_sampling or info.need_top_k_sampling or info.need_min_p_sampling,
    )
