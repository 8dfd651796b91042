"""One round of the lossless mode, as SGLang's scheduler asks its model worker for it.

A round drafts ``k`` tokens per request with lim's sparse attention, one step each, and verifies them in one dense step,
which also writes K and V of all its tokens anew: nothing that was computed sparsely stays in the cache. ``t`` is the
last output token, whose K and V are not cached yet, ``d`` a draft, ``-`` padding to the fixed width of a verification::

    choose k            policy: lengths, acceptance so far, costs             k = 0: a plain step, one dense token
      |
    draft 1 ... k       StepKind "draft":  t -> d1, d1 -> d2, ... -> dk       k steps, lim
      |
    verify              t  d1 d2 ... dk -  -                                  1 step, dense
      |                 |  |  |      |
    accept              o1 o2 o3 ... ok+1   equal or by rejection: the run of accepted drafts and one token more,
      |                                     the bonus where all were accepted
    publish lengths     + accepted + 1      SGLang frees the slots behind; the last token is the next round's t

A request that may not draft (``sampling.may_draft``) is in the same steps and accepts none of them. SGLang hears the
outcome of a step one step later where it overlaps host and GPU, see ``LimSpecWorker._unresolved``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
from torch import Tensor

from lim_sglang.host import compat
from lim_sglang.host.launch import one_line_for_the_command_line
from lim_sglang.speculative.costs import measure_costs, run_one_draft
from lim_sglang.speculative.draft_weights import weights_of_launch
from lim_sglang.speculative.forward import LimDrafter, StepKind, decode_step, slots_ahead, verify_step
from lim_sglang.speculative.policy import DraftPolicy
from lim_sglang.speculative.sampling import Drafts, SamplingRule, VerifyResult, adjust_logits, may_draft, verify
from lim_sglang.speculative.spec_input import RoundInput

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.tp_worker import TpModelWorker
    from sglang.srt.server_args import ServerArgs

Publish = Callable[[Tensor], None] | None
"""Hands SGLang's scheduler the lengths after a step, with which it prepares the next one."""


class LimSpecWorker(BaseSpecWorker):
    """SGLang's scheduler takes it for its model worker; drafts and verification share the target's runner and cache.

    ``_unresolved`` holds a step's number of drafts, and of every request of its batch itself where it drafted, until
    ``on_verify_complete_cpu`` tells the step's outcome: SGLang may start the next step before, and tells in order.
    """

    def __init__(self, server_args: ServerArgs, target_worker: TpModelWorker, **_: Any) -> None:
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
        self.weights = weights_of_launch(server_args, self.runner)
        # Ranks that share the heads sample alike: same numbers, same order, from the seed that SGLang gave all of them.
        self.generator = torch.Generator(self.runner.device).manual_seed(target_worker.random_seed)
        self.plain: StepKind
        self.drafter: LimDrafter
        self.policy: DraftPolicy
        self._unresolved: deque[tuple[int, list[Req | None]]] = deque()

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
        self.plain = StepKind(self.runner, self.runner.attn_backend)
        self.drafter = LimDrafter(StepKind(self.runner, attention, weights=self.weights), self.generator)
        budget = attention.parts.budget
        self.policy = DraftPolicy(self.width - 1, budget, drafts_within_budget=self.weights is not None)
        self.config = attention.metrics.config
        self.metrics = attention.metrics.add_rounds(self.weights)

    def init_cuda_graphs(self) -> None:
        """The runner has captured verifications; here come plain steps, and the drafts'."""
        self.plain = self.plain.capture_graphs()
        if self.weights:
            self.weights.refresh()
        self.drafter.steps = self.drafter.steps.capture_graphs()
        if self.weights:
            with one_line_for_the_command_line(self.server_args):
                if self.drafter.steps.graphs is None:
                    run_one_draft(self.drafter.steps)
                self.weights.check_calls(self.config.draft_weights)
        if self.config.drafts_by_costs(str(self.runner.device)):
            self.policy.costs = measure_costs(self.plain, self.drafter.steps, self.width)

    def mark_weights_stale(self) -> None:
        """The model's weights may have changed, by any of SGLang's ways; ``lim_patches`` calls it."""
        if self.weights:
            self.weights.mark_stale()

    def update_weights_from_disk(self, recv_req: Any) -> tuple[bool, str]:
        """Answer as SGLang does: what drafts have of their own is made of the model's weights."""
        return True, "Succeeded to update model weights."

    update_weights_from_ipc = update_weights_from_disk

    def update_weights_from_tensor(self, recv_req: Any) -> Any:
        return self.target_worker.update_weights_from_tensor(recv_req)

    @property
    def spec_v2_attn_backends(self) -> tuple[Any, ...]:
        return (self.runner.attn_backend, self.drafter.steps.attention)

    # Steps

    def forward_batch_generation(
        self, batch: ScheduleBatch, on_publish: Publish = None, **_: Any
    ) -> GenerationBatchResult:
        if not batch.forward_mode.is_decode():
            return self._extend(batch, on_publish)
        drafting = [may_draft(req) for req in batch.reqs]
        lengths = batch.seq_lens_cpu.tolist()
        # The host may not know of the last round yet, and buffers hold requests of the context's length.
        has_room = max(lengths) + 2 * self.width <= self.runner.model_config.context_len
        num_drafts = self.policy.choose_num_drafts(lengths, drafting) if has_room else 0
        drafters = [req if may else None for req, may in zip(batch.reqs, drafting, strict=True)]
        self._unresolved.append((num_drafts, drafters))
        rule = SamplingRule.from_batch(batch.sampling_info, self._samples_by_flashinfer)
        if num_drafts:
            return self._round(batch, rule, drafting, num_drafts, on_publish)
        return self._plain_step(batch, rule, on_publish)

    def on_verify_complete_cpu(self, num_correct_drafts_per_req: list[int], batch_size: int = 0) -> None:
        """SGLang tells the outcome of every step, in order, once the host has it.

        With the overlap scheduler, a request that has ended meanwhile was in one more step, which SGLang drops.
        """
        num_drafts, drafters = self._unresolved.popleft()
        outcomes = zip(num_correct_drafts_per_req, drafters, strict=True)
        num_accepted = [n for n, req in outcomes if req and not (req.finished() or req.is_retracted)]
        if num_drafts:
            self.metrics.observe_drafts(num_accepted, num_drafts)
        self.policy.observe(num_accepted, num_drafts)

    def _extend(self, batch: ScheduleBatch, on_publish: Publish) -> GenerationBatchResult:
        """Prefill as without drafts: a result of one token per request."""
        result = self.target_worker.forward_batch_generation(batch)
        lengths = batch.seq_lens.clone()
        if on_publish is not None:
            on_publish(lengths)
        verified = VerifyResult(result.next_token_ids.long()[:, None], torch.zeros_like(lengths))
        return self._complete(result, verified, lengths)

    def _plain_step(self, batch: ScheduleBatch, rule: SamplingRule, on_publish: Publish) -> GenerationBatchResult:
        """One token per request by dense attention; the lengths are known before, and the scheduler may go on."""
        lengths = batch.seq_lens + 1
        if on_publish is not None:
            on_publish(lengths)
        step = decode_step(batch, batch.spec_info.bonus_tokens, slots_ahead(batch, 1)[:, 0])
        self.metrics.observe_plain_step()
        with self.plain.swap_in():
            result = self.target_worker.forward_batch_generation(step, is_verify=True)
        verified = self._verify(result.logits_output, batch, None, rule, torch.zeros_like(lengths))
        return self._complete(result, verified, lengths)

    def _round(
        self, batch: ScheduleBatch, rule: SamplingRule, drafting: list[bool], num_drafts: int, on_publish: Publish
    ) -> GenerationBatchResult:
        """Draft, then verify all drafts in one step; see the drawing above."""
        if self.weights:
            self.weights.refresh()
        last_tokens, slots = batch.spec_info.bonus_tokens, slots_ahead(batch, self.width)
        drafts = self.drafter.draft(batch, last_tokens, slots, rule, num_drafts)
        padding = last_tokens[:, None].expand(-1, self.width - 1 - num_drafts)
        tokens = torch.cat([last_tokens[:, None], drafts.tokens, padding], 1)
        self.metrics.observe_verify_step()
        result = self.target_worker.forward_batch_generation(verify_step(batch, tokens, slots), is_verify=True)
        limits = limit_drafts(drafting, num_drafts, tokens.device)
        verified = self._verify(result.logits_output, batch, drafts, rule, limits)
        lengths = batch.seq_lens + verified.num_accepted + 1
        if on_publish is not None:
            on_publish(lengths)
        # The drafts' steps have told the scheduler that the table of slots is read; the verification reads it, too.
        setattr(self.runner, self._read_done_event, None)
        return self._complete(result, verified, lengths)

    def _verify(
        self, output: Any, batch: ScheduleBatch, drafts: Drafts | None, rule: SamplingRule, limits: Tensor
    ) -> VerifyResult:
        """The tokens of a step from its logits [B * width, V], the rows behind the drafts left out."""
        width = 1 if drafts is None else drafts.tokens.shape[1] + 1
        logits = output.next_token_logits.unflatten(0, (len(limits), -1))[:, :width]
        adjust_logits(logits, batch.sampling_info, self.runner)
        verified = verify(logits, drafts, rule, limits, self.generator)
        if batch.return_logprob:
            output.next_token_logits = logits.flatten(0, 1)
            compat.add_logprobs(batch, output, verified.tokens.flatten(), width)
        return verified

    def _complete(self, result: Any, verified: VerifyResult, lengths: Tensor) -> GenerationBatchResult:
        """SGLang's result of a step: rows of equally many tokens per request, the output first."""
        result.next_token_ids = verified.tokens.flatten().int()
        result.accept_lens = (verified.num_accepted + 1).int()
        result.new_seq_lens = lengths
        result.next_draft_input = RoundInput(self.width, last_tokens=verified.last_tokens)
        result.speculative_num_draft_tokens = verified.tokens.shape[1]
        return result


def limit_drafts(drafting: list[bool], num_drafts: int, device: torch.device) -> Tensor:
    """[B] int64 the most drafts that each request may accept; the host does not wait for the copy."""
    if all(drafting):
        return torch.full((len(drafting),), num_drafts, device=device)
    limits = torch.tensor([may * num_drafts for may in drafting], pin_memory=device.type == "cuda")
    return limits.to(device, non_blocking=True)
