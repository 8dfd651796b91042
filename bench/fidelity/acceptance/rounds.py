"""Rounds of drafts that start inside of what the dense model itself wrote."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from bench.fidelity.acceptance.drafts import KINDS, SetRecorder, draft_policy
from bench.fidelity.acceptance.rejection import chance_of_all, probabilities
from lim_sglang.layer_plan import LayerPlan
from lim_sglang.tools.analysis.model import PolicyModel, Prefix
from lim_sglang.tools.analysis.policies import Dense

TOLERANCE = 1e-3  # of a draft's chance; two shapes of one float32 product differ by less


class UnequalError(RuntimeError):
    """What must be equal is not; the message is one line."""


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


@dataclass(frozen=True)
class Round:
    """Drafts behind a token of a text, and what the verifier made of the text's own tokens in their place."""

    target: Tensor  # [k, V] float32 logits of the verifier
    draft: Tensor  # [k, V] float32 logits of the drafts
    ids: Tensor  # [k] int64, the text's own tokens
    temperature: float

    def chances(self, greedy_drafts: bool = False) -> Tensor:
        """[k] float64, the chance that drafts 1 to ``i`` are all accepted, as in ``chance_of_all``.

        With ``greedy_drafts`` they are the most likely tokens, and accepted with the verifier's probability.
        """
        draft = probabilities(self.draft, 0 if greedy_drafts else self.temperature)
        return chance_of_all(probabilities(self.target, self.temperature), draft, self.ids)


def run_round(
    model: PolicyModel, plan: LayerPlan, written: Written, start: int, drafts: int, kind: str, budget: int
) -> Round:
    """Draft ``k = drafts`` tokens behind token ``start`` of a text that goes on for as many.

    The last verified token is the one before ``start``, so ``start`` is at least 1.
    """
    prefix = written.before(start)
    sets = written.recorder.sets(budget, start - 1, prefix.length)
    at, after = slice(start, start + drafts), slice(start + 1, start + drafts + 1)
    logits, _ = model.decode(prefix, written.ids[at].tolist(), draft_policy(kind, plan, budget, sets))
    return Round(written.logits[at], logits, written.ids[after], written.temperature)


def check(model: PolicyModel, plan: LayerPlan, written: Written, start: int, drafts: int) -> None:
    """Drafts that read everything are accepted, whatever they are made by; raises UnequalError where one is not."""
    everything = written.prefix.length
    for kind in KINDS:
        found = run_round(model, plan, written, start, drafts, kind, everything).chances()
        if not bool((found > 1 - TOLERANCE).all()):
            raise UnequalError(
                f"{kind} at K = {everything}, which leaves nothing out: {float(found.sum()):.4f} of {drafts} drafts "
                f"are accepted at temperature {written.temperature:g}, expected all"
            )
