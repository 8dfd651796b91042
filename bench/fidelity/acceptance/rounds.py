"""Rounds of drafts that start inside of what the dense model itself wrote, and how many of them it accepts.

A draft ``x ~ q`` is accepted with probability ``min(1, p(x) / q(x))``, and the first that is not ends the round
(arXiv 2211.17192). Whatever the draft was, the token that comes out is ``p``'s. So a draft is accepted, given the
token ``y`` that came out in its place, with probability ``min(1, q(y) / p(y))``, and text that the verifier wrote by
itself serves to follow a round: one forward pass over it instead of one draft after the other.

Greedy choice is the same with all probability on one token: accepted where both choose the same one.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from bench.fidelity.policies import SINKS, streaming_llm
from lim_kernels.linear.reference import quantize
from lim_kernels.select.budget import split_budget
from lim_kernels.select.reference import select_token_set
from lim_sglang.layer_plan import LayerPlan, LayerRole
from lim_sglang.tools.analysis.model import LayerView, Policy, PolicyModel, Prefix
from lim_sglang.tools.analysis.policies import Dense, LessIsMore, set_mask

RECENCY_RATIO = 0.25
LIM, INT8, KEPT, WINDOW = KINDS = ("lim steps", "lim steps, int8", "kept sets", "window")
TOLERANCE = 1e-3  # of a draft's chance; two shapes of one float32 product differ by less


class UnequalError(RuntimeError):
    """What must be equal is not; the message is one line."""


class KeptSets:
    """Every layer reads what the nearest SELECT layer chose for the last verified token, and the drafts so far.

    Layers before the first SELECT layer read its set. ``sets``: by SELECT layer, [n] bool over the ``n`` tokens before
    the first that a draft step feeds.
    """

    name = KEPT

    def __init__(self, sets: Mapping[int, Tensor]) -> None:
        self.sets = sets

    def mask(self, view: LayerView) -> Tensor:
        kept = self.sets[max((layer for layer in self.sets if layer <= view.layer), default=min(self.sets))]
        drafts = kept.new_ones(view.scores.shape[2] - len(kept))
        return view.causal & torch.cat([kept, drafts])


class SetRecorder:
    """An observer of ``PolicyModel.decode``: the sets of every step and SELECT layer, at several budgets."""

    def __init__(self, plan: LayerPlan, budgets: Sequence[int]) -> None:
        self.plan = plan
        self.splits = [split_budget(budget, RECENCY_RATIO, SINKS) for budget in budgets]
        self._sets: dict[tuple[int, int], Tensor] = {}

    def __call__(self, view: LayerView, _mask: Tensor) -> None:
        if self.plan.role(view.layer) is not LayerRole.SELECT:
            return
        for split in self.splits:
            chosen = select_token_set(view.scores, view.lengths, split)
            self._sets[split.budget, view.layer] = set_mask(chosen, view.scores.shape[2])[:, 0]

    def sets(self, budget: int, step: int, length: int) -> dict[int, Tensor]:
        """By SELECT layer, [length] bool: what it chose in ``step``, which saw ``length`` tokens."""
        return {layer: self._sets[budget, layer][step, :length] for layer in self.plan.select_layers}


def draft_policy(kind: str, plan: LayerPlan, budget: int, sets: Mapping[int, Tensor]) -> Policy:
    """One of ``KINDS`` at ``K = budget``; ``sets`` are the last verified token's at that budget, as in ``KeptSets``."""
    if kind in (LIM, INT8):
        return LessIsMore(plan, split_budget(budget, RECENCY_RATIO, SINKS), LIM)
    return KeptSets(sets) if kind == KEPT else streaming_llm(budget, dense_layers=0, name=WINDOW)


@dataclass(frozen=True)
class Written:
    """What the dense model wrote behind a prompt, and how it verifies it."""

    temperature: float  # of its choice, 0 for greedy
    ids: Tensor  # [N] int64
    logits: Tensor  # [N, V] float32, dense attention's for the token after each
    prefix: Prefix  # prompt and text
    recorder: SetRecorder  # what the SELECT layers chose at each of the N tokens

    def before(self, start: int) -> Prefix:
        """Everything before token ``start``, at least 1, of the text."""
        return self.prefix.cut(self.prefix.length - len(self.ids) + start, self.logits[start - 1])


def write(
    model: PolicyModel,
    prompt: Prefix,
    plan: LayerPlan,
    budgets: Sequence[int],
    count: int,
    temperature: float,
    seed: str,
) -> Written:
    """Let the dense model write ``count`` tokens, then verify them by one pass that records sets at ``budgets``.

    Sets of the budget ``prompt.length + count``, which leaves nothing out, are recorded as well.

    Raises:
        UnequalError: greedy text is not what the verifying pass chooses.
    """
    ids = list(islice(model.generate(prompt, Dense(), sampler(temperature, seed)), count))
    recorder = SetRecorder(plan, [*budgets, prompt.length + count])
    logits, prefix = model.decode(prompt, ids, Dense(), recorder)
    if temperature == 0 and logits[:-1].argmax(-1).tolist() != ids[1:]:
        raise UnequalError("a dense pass over greedy text chooses other tokens than dense steps did")
    return Written(temperature, torch.tensor(ids, device=logits.device), logits, prefix, recorder)


def sampler(temperature: float, seed: str) -> Callable[[Tensor], int]:
    """Draws a token by its [V] logits."""
    generator = torch.Generator().manual_seed(random.Random(seed).getrandbits(63))
    return lambda logits: int(torch.multinomial(probabilities(logits.cpu(), temperature), 1, generator=generator))


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """[..., V] float32 logits to probabilities; at temperature 0 all of it lies on the most likely token."""
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1)
    return (logits / temperature).softmax(-1)


@dataclass(frozen=True)
class Round:
    """Drafts behind a token of a text, and what the verifier made of the text's own tokens in their place."""

    target: Tensor  # [k, V] float32 logits of the verifier
    draft: Tensor  # [k, V] float32 logits of the drafts
    ids: Tensor  # [k] int64, the text's own tokens
    temperature: float

    def chances(self, greedy_drafts: bool = False) -> Tensor:
        """[k] float64, the chance that drafts 1 to ``i`` are all accepted; summed, how many are on average.

        An estimate whose mean over all texts is the chance, exact at temperature 0. With ``greedy_drafts`` they are the
        most likely tokens, and accepted with the verifier's probability.
        """
        target = probabilities(self.target, self.temperature)
        draft = probabilities(self.draft, 0 if greedy_drafts else self.temperature)
        overlap = torch.minimum(target, draft).double().sum(-1)
        at = self.ids[:, None]
        accepted = (draft.gather(-1, at) / target.gather(-1, at)).double().clamp(max=1)[:, 0]
        before = torch.cat([accepted.new_ones(1), accepted[:-1]]).cumprod(0)
        return before * overlap


@torch.no_grad()
def quantize_model(model: PolicyModel) -> PolicyModel:
    """The model as ``--lim-draft-weights int8`` drafts with it: layers and head rounded, the embedding as it is."""
    drafting = copy.deepcopy(model.model)
    for module in drafting.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(quantize(module.weight).dequantize().to(module.weight.dtype))
    return PolicyModel(drafting)


def run_round(
    model: PolicyModel, plan: LayerPlan, written: Written, start: int, drafts: int, kind: str, budget: int
) -> Round:
    """Draft ``k = drafts`` tokens behind token ``start`` of a text that goes on for as many.

    The last verified token is the one before ``start``, so ``start`` is at least 1. ``model`` is the one that drafts.
    """
    prefix = written.before(start)
    sets = written.recorder.sets(budget, start - 1, prefix.length)
    at, after = slice(start, start + drafts), slice(start + 1, start + drafts + 1)
    logits, _ = model.decode(prefix, written.ids[at].tolist(), draft_policy(kind, plan, budget, sets))
    return Round(written.logits[at], logits, written.ids[after], written.temperature)


def check(model: PolicyModel, plan: LayerPlan, written: Written, start: int, drafts: int) -> None:
    """Drafts that read everything are accepted, whatever they are made by; raises UnequalError where one is not."""
    everything = written.prefix.length
    for kind in (LIM, KEPT, WINDOW):
        found = run_round(model, plan, written, start, drafts, kind, everything).chances()
        if not bool((found > 1 - TOLERANCE).all()):
            raise UnequalError(
                f"{kind} at K = {everything}, which leaves nothing out: {float(found.sum()):.4f} of {drafts} drafts "
                f"are accepted at temperature {written.temperature:g}, expected all"
            )


def check_rounded(rounded: PolicyModel, plan: LayerPlan, written: Written, starts: Sequence[int], drafts: int) -> None:
    """Most drafts of rounded weights that read everything are accepted; raises UnequalError where they are not."""
    rounds = [run_round(rounded, plan, written, start, drafts, INT8, written.prefix.length) for start in starts]
    share = float(torch.stack([one.chances() for one in rounds]).mean())
    if share < 0.5:
        raise UnequalError(
            f"{INT8} at K = {written.prefix.length}, which leaves nothing out: {share:.0%} of the drafts would be "
            f"accepted at temperature {written.temperature:g}, expected half at least"
        )
