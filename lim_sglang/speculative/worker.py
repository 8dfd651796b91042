"""A round of the lossless mode in SGLang's scheduler: draft with lim, verify with dense attention, accept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
from torch import Tensor

from lim_sglang.host import compat, lossless
from lim_sglang.speculative.costs import measure_costs
from lim_sglang.speculative.forward import DecodePass, LimDrafter, decode_step, slots_ahead, verify_step
from lim_sglang.speculative.policy import DraftPolicy
from lim_sglang.speculative.sampling import Drafts, SamplingRule, Verdict, may_draft, verify
from lim_sglang.speculative.spec_input import RoundInput

Publish = Callable[[Tensor], None] | None


class LimSpecWorker(BaseSpecWorker):
    """SGLang's scheduler takes it for its model worker; drafts and verification share the target's runner and cache."""

    def __init__(self, server_args: Any, target_worker: Any, **_: Any) -> None:
        super().__init__()
        self.server_args = server_args
        self._target_worker = target_worker
        args = compat.effective_args(server_args)
        self.width = int(args.speculative_num_draft_tokens)
        self.speculative_num_draft_tokens = self.width
        self.speculative_num_steps = self.width - 1
        self.adaptive_controller = None
        self._samples_by_flashinfer = args.sampling_backend == "flashinfer"
        self.runner = target_worker.model_runner
        self._read_done_event = compat.read_done_event(self.runner)
        # Ranks that share the heads draw alike: same draws, same order, from the seed that SGLang gave all of them.
        self.generator = torch.Generator(self.runner.device).manual_seed(target_worker.random_seed)
        self.plain: DecodePass
        self.drafter: LimDrafter
        self.policy: DraftPolicy
        self._unresolved: deque[tuple[int, list[Any]]] = deque()  # steps whose outcome is on its way: drafts, requests

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
        self.plain = DecodePass(self.runner, self.runner.attn_backend)
        self.drafter = LimDrafter(DecodePass(self.runner, attention), self.generator)
        self.policy = DraftPolicy(self.width - 1, attention.parts.budget)
        self.metrics = attention.metrics.add_rounds()

    def init_cuda_graphs(self) -> None:
        """The runner has captured verifications; here come steps without drafts, and the drafts'."""
        self.plain = self.plain.captured()
        self.drafter.steps = self.drafter.steps.captured()
        if lossless.drafts_as_it_pays(str(self.runner.device)):
            self.policy.costs = measure_costs(self.plain, self.drafter.steps, self.width)

    def update_weights_from_disk(self, recv_req: Any) -> tuple[bool, str]:
        return True, "The drafts have no weights of their own."

    update_weights_from_ipc = update_weights_from_disk

    def update_weights_from_tensor(self, recv_req: Any) -> Any:
        return self.target_worker.update_weights_from_tensor(recv_req)

    @property
    def spec_v2_attn_backends(self) -> tuple[Any, ...]:
        return (self.runner.attn_backend, self.drafter.steps.attention)

    # Steps

    def forward_batch_generation(self, batch: Any, on_publish: Publish = None, **_: Any) -> GenerationBatchResult:
        if not batch.forward_mode.is_decode():
            return self._extend(batch, on_publish)
        drafting = [may_draft(req) for req in batch.reqs]
        lengths = batch.seq_lens_cpu.tolist()
        # The host may not know of the last round yet, and buffers hold requests of the context's length.
        has_room = max(lengths) + 2 * self.width <= self.runner.model_config.context_len
        drafts = self.policy.drafts(lengths, drafting) if has_room else 0
        self._unresolved.append((drafts, [req if may else None for req, may in zip(batch.reqs, drafting, strict=True)]))
        return self._round(batch, drafting, drafts, on_publish) if drafts else self._plain_step(batch, on_publish)

    def on_verify_complete_cpu(self, num_correct_drafts_per_req: list[int], batch_size: int = 0) -> None:
        """SGLang tells the outcome of every step, in order, once the host has it.

        With the overlap scheduler, a request that has ended meanwhile was in one more step, which SGLang drops.
        """
        drafts, reqs = self._unresolved.popleft()
        outcomes = zip(num_correct_drafts_per_req, reqs, strict=True)
        accepted = [n for n, req in outcomes if req and not (req.finished() or req.is_retracted)]
        if drafts:
            self.metrics.observe_drafts(len(accepted), drafts, sum(accepted))
        self.policy.observe(accepted, drafts)

    def _extend(self, batch: Any, on_publish: Publish) -> GenerationBatchResult:
        """Prefill, as without drafts."""
        result = self.target_worker.forward_batch_generation(batch)
        lengths = batch.seq_lens.clone()
        if on_publish is not None:
            on_publish(lengths)
        accepted = torch.zeros_like(lengths)
        return self._complete(result, Verdict(result.next_token_ids.long()[:, None], accepted), lengths, self.width)

    def _plain_step(self, batch: Any, on_publish: Publish) -> GenerationBatchResult:
        """One token per request by dense attention; the lengths are known before, and the scheduler may go on."""
        lengths = batch.seq_lens + 1
        if on_publish is not None:
            on_publish(lengths)
        step = decode_step(batch, batch.spec_info.bonus_tokens, slots_ahead(batch, 1)[:, 0])
        self.metrics.observe_plain_step()
        with self.plain.bound():
            result = self.target_worker.forward_batch_generation(step, is_verify=True)
        verdict = self._judge(result.logits_output, batch, None, torch.zeros_like(lengths))
        return self._complete(result, verdict, lengths, 1)

    def _round(self, batch: Any, drafting: list[bool], num_drafts: int, on_publish: Publish) -> GenerationBatchResult:
        """Draft, then verify all drafts in one pass, which writes K and V of all its tokens anew."""
        bonus, slots = batch.spec_info.bonus_tokens, slots_ahead(batch, self.width)
        rule = self._sampling_rule(batch.sampling_info)
        drafts = self.drafter.draft(batch, bonus, slots, rule, num_drafts)
        padding = bonus[:, None].expand(-1, self.width - 1 - num_drafts)  # every verification has as many tokens
        tokens = torch.cat([bonus[:, None], drafts.tokens, padding], 1)
        self.metrics.observe_verify_step()
        result = self.target_worker.forward_batch_generation(verify_step(batch, tokens, slots), is_verify=True)
        verdict = self._judge(result.logits_output, batch, drafts, limits_of(drafting, num_drafts, bonus.device))
        lengths = batch.seq_lens + verdict.accepted + 1
        if on_publish is not None:
            on_publish(lengths)
        # The drafts' steps have told the scheduler that the table of slots is read; the verification reads it, too.
        setattr(self.runner, self._read_done_event, None)
        return self._complete(result, verdict, lengths, num_drafts + 1)

    def _judge(self, output: Any, batch: Any, drafts: Drafts | None, limits: Tensor) -> Verdict:
        """The tokens of a step from its logits [B * width, V], the rows behind the drafts left out."""
        info, width = batch.sampling_info, 1 if drafts is None else drafts.tokens.shape[1] + 1
        logits = output.next_token_logits.unflatten(0, (len(limits), -1))[:, :width]
        self._adjust(logits, info)
        verdict = verify(logits, drafts, self._sampling_rule(info), limits, self.generator)
        if batch.return_logprob:
            output.next_token_logits = logits.flatten(0, 1)
            compat.add_logprobs(batch, output, verdict.tokens.flatten(), width)
        return verdict

    def _sampling_rule(self, info: Any) -> SamplingRule:
        """The rule of SGLang's ``SamplingBatchInfo``."""
        return SamplingRule(
            temperatures=info.temperatures,
            top_ks=info.top_ks,
            top_ps=info.top_ps,
            min_ps=info.min_ps,
            is_greedy=info.is_all_greedy,
            is_filtered=info.need_top_p_sampling or info.need_top_k_sampling or info.need_min_p_sampling,
            renormalises=info.need_min_p_sampling and self._samples_by_flashinfer,
        )

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


def limits_of(drafting: list[bool], num_drafts: int, device: torch.device) -> Tensor:
    """[B] int64 the most drafts that each request may accept; the host does not wait for the copy."""
    if all(drafting):
        return torch.full((len(drafting),), num_drafts, device=device)
    limits = torch.tensor([may * num_drafts for may in drafting], pin_memory=device.type == "cuda")
    return limits.to(device, non_blocking=True)
