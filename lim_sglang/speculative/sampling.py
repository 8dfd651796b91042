"""From logits to tokens: who may draft, what is done to logits, and the exact acceptance of a chain of drafts.

Speculative sampling (arXiv 2211.17192, algorithm 1; 2302.01318): a draft ``x`` that was sampled from ``q`` is accepted
with probability ``min(1, p(x) / q(x))``; the first rejected one is replaced by a sample of ``max(p - q, 0)``,
normalised; where none is rejected, one more token, the bonus, is sampled from ``p``. So the output has dense
attention's distribution ``p``, whatever drafted.

Shapes: ``B`` requests, ``k`` drafts each, ``T`` tokens each in a step, ``V`` tokens in the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo


def may_draft(req: Req) -> bool:
    """Whether this request accepts drafts in the coming round; else it gets one token by dense attention.

    Penalties, grammars and custom logit processors change the distribution with every token of the output. SGLang
    applies them to the round's first token only, so that is all such a request takes. ``min_new_tokens`` forbids the
    end of the output up to a length.
    """
    params = req.sampling_params
    neutral = not params.frequency_penalty and not params.presence_penalty and params.repetition_penalty == 1
    free = req.grammar is None and not req.custom_logit_processor
    return neutral and free and len(req.output_ids) >= params.min_new_tokens


def adjust_logits(logits: Tensor, info: SamplingBatchInfo, runner: Any) -> None:
    """Do to a dense step's logits, in place, all that SGLang does to them before it samples.

    Penalties, grammars and custom processors hold for the first token of a request: see ``may_draft``.

    Args:
        logits: [B, T, V].
        runner: SGLang's ``ModelRunner``.
    """
    first = SimpleNamespace(next_token_logits=logits[:, 0].contiguous())
    runner._preprocess_logits(first, info)
    runner.sampler._preprocess_logits(first.next_token_logits, info)
    logits[:, 0] = first.next_token_logits
    add_bias(logits[:, 1:], info)


def add_bias(logits: Tensor, info: SamplingBatchInfo) -> None:
    """Do to [B, T, V] logits, in place, what holds for every token of a request that drafts: add its ``logit_bias``."""
    if info.logit_bias is not None:
        logits += info.logit_bias[:, None]


@dataclass(frozen=True)
class SamplingRule:
    """From logits to the distribution that a request samples from, as SGLang's sampler has it (``layers/sampler.py``).

    Attributes:
        temperatures: [B, 1] float32, above 0.
        top_ks: [B] int32; 1 is greedy.
        top_ps, min_ps: [B] float32.
        is_greedy: whether all requests are greedy.
        is_filtered: whether any request has a top-k, top-p or min-p that drops tokens.
        renormalises: whether top-p counts shares of the top k, as with FlashInfer where any request has a min-p, and
            not of all tokens.
    """

    temperatures: Tensor
    top_ks: Tensor
    top_ps: Tensor
    min_ps: Tensor
    is_greedy: bool
    is_filtered: bool
    renormalises: bool = False

    @classmethod
    def from_batch(cls, info: SamplingBatchInfo, samples_by_flashinfer: bool) -> SamplingRule:
        """The rule of the requests of a batch; ``samples_by_flashinfer`` tells SGLang's sampling backend."""
        return cls(
            temperatures=info.temperatures,
            top_ks=info.top_ks,
            top_ps=info.top_ps,
            min_ps=info.min_ps,
            is_greedy=info.is_all_greedy,
            is_filtered=info.need_top_p_sampling or info.need_top_k_sampling or info.need_min_p_sampling,
            renormalises=info.need_min_p_sampling and samples_by_flashinfer,
        )


def distribution(logits: Tensor, rule: SamplingRule) -> Tensor:
    """[B, T, V] logits to probabilities in float32; all ``T`` tokens of a request follow its own rule."""
    probs = torch.softmax(logits.float() / rule.temperatures[:, :, None], dim=-1)
    if not rule.is_filtered:
        return probs
    ordered, tokens = probs.sort(dim=-1, descending=True)
    beyond_k = torch.arange(probs.shape[-1], device=probs.device) >= rule.top_ks[:, None, None]
    if rule.renormalises:
        ordered.masked_fill_(beyond_k, 0.0)
        ordered /= ordered.sum(-1, keepdim=True)
    beyond_p = ordered.cumsum(-1) - ordered > rule.top_ps[:, None, None]
    ordered.masked_fill_(beyond_p | beyond_k, 0.0)
    ordered.masked_fill_(ordered < ordered[..., :1] * rule.min_ps[:, None, None], 0.0)
    ordered /= ordered.sum(-1, keepdim=True)
    return torch.zeros_like(probs).scatter_(-1, tokens, ordered)


def uniform(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Numbers in [0, 1) of the shape and dtype of ``like``."""
    return torch.empty_like(like).uniform_(generator=generator)


def sample(weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """[B, V] weights to [B] tokens; ``torch.multinomial`` would wait for the device to check them.

    Of exponential clocks, each as fast as its token's weight, the first to ring.
    """
    return (weights / torch.empty_like(weights).exponential_(generator=generator)).argmax(-1)


@dataclass(frozen=True)
class Drafts:
    """A chain of drafts per request.

    Attributes:
        tokens: [B, k] int64.
        proposals: [B, k, V] float32, the probabilities that each was sampled from; None where all are greedy.
    """

    tokens: Tensor
    proposals: Tensor | None


@dataclass(frozen=True)
class VerifyResult:
    """The output of a dense step.

    Attributes:
        tokens: [B, T] int64; the first ``num_accepted + 1`` of a row are output, the others mean nothing.
        num_accepted: [B] int64 accepted drafts.
    """

    tokens: Tensor
    num_accepted: Tensor

    @property
    def last_tokens(self) -> Tensor:
        """[B] the last output token of every request: the one after its accepted drafts."""
        return self.tokens.gather(1, self.num_accepted[:, None])[:, 0]


def verify(
    logits: Tensor,
    drafts: Drafts | None,
    rule: SamplingRule,
    limits: Tensor,
    generator: torch.Generator | None = None,
) -> VerifyResult:
    """Accept drafts, and sample one token more.

    Args:
        logits: [B, k + 1, V] of dense attention, row ``t`` after ``t`` drafts; without drafts [B, 1, V].
        drafts: None where nothing was drafted.
        limits: [B] int64, the most drafts that a request may accept.
        generator: of all random numbers; None for the device's own.
    """
    if drafts is None:
        first = logits[:, 0].argmax(-1) if rule.is_greedy else sample(distribution(logits, rule)[:, 0], generator)
        return VerifyResult(first[:, None], limits)
    if drafts.proposals is None:
        return verify_greedy(logits, drafts.tokens, limits)
    return verify_sampled(distribution(logits, rule), drafts.tokens, drafts.proposals, limits, generator)


def verify_greedy(logits: Tensor, draft_tokens: Tensor, limits: Tensor) -> VerifyResult:
    """Accept the drafts [B, k] that are the likeliest tokens, up to the first that is not; else as ``verify``."""
    best = logits.argmax(-1)
    return VerifyResult(best, _run_length(draft_tokens == best[:, :-1], limits))


def verify_sampled(
    target: Tensor, draft_tokens: Tensor, proposals: Tensor, limits: Tensor, generator: torch.Generator | None = None
) -> VerifyResult:
    """Accept or reject drafts so that the output's distribution is the target's.

    Args:
        target: [B, k + 1, V] dense attention's probabilities, row ``t`` after ``t`` drafts.
        draft_tokens: [B, k] int64, every one sampled from its row of ``proposals``.
        proposals: [B, k, V] the drafts' probabilities.
        limits: [B] int64, the most drafts that a request may accept; what follows them is sampled from the target.
    """
    batch, num_drafts = draft_tokens.shape
    at_draft = draft_tokens[:, :, None]
    likely, proposed = target[:, :-1].gather(2, at_draft)[..., 0], proposals.gather(2, at_draft)[..., 0]
    accepted = _run_length(uniform(likely, generator) * proposed < likely, limits)
    requests = torch.arange(batch, device=draft_tokens.device)
    weights = target[requests, accepted]  # [B, V]
    rest = (weights - proposals[requests, accepted.clamp(max=num_drafts - 1)]).clamp(min=0)
    rejected = (accepted < limits) & (rest.sum(-1) > 0)  # the rest vanishes only where rounding alone rejected
    last = sample(torch.where(rejected[:, None], rest, weights), generator)
    tokens = torch.cat([draft_tokens, draft_tokens[:, -1:]], 1).scatter_(1, accepted[:, None], last[:, None])
    return VerifyResult(tokens, accepted)


def _run_length(right: Tensor, limits: Tensor) -> Tensor:
    """[B] length of the run of right drafts at the start of each row, at most its limit."""
    return torch.minimum(right.long().cumprod(1).sum(1), limits)
