"""How many tokens to draft: what makes most tokens a second by measured costs and acceptance; none where it loses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lim_sglang.speculative.costs import Costs


@dataclass
class Acceptance:
    """The share of drafts that are accepted, given that those before were: from recent rounds, and a prior.

    Attributes:
        prior: the share before anything was seen, and what steps without drafts drift back to: high, so that drafts
            are tried wherever they may pay.
        weight: how many drafts the prior counts for: few, so that a try that fails costs little.
        memory: what remains of older rounds' weight after one more.
        idle_memory: what remains after a step without drafts.
        idle_steps: after so many of them in a row nothing remains: large batches have seen much.
    """

    prior: float = 0.97
    weight: float = 10.0
    memory: float = 0.95
    idle_memory: float = 0.998
    idle_steps: int = 1000
    _right: float = field(default=0.0, init=False)
    _seen: float = field(default=0.0, init=False)
    _idle: int = field(default=0, init=False)

    @property
    def rate(self) -> float:
        """Between 0 and 1."""
        return (self._right + self.prior * self.weight) / (self._seen + self.weight)

    def observe(self, num_accepted: Sequence[int], num_drafts: int) -> None:
        """Count a round: by request, how many of its drafts were accepted; none after the first wrong one counts."""
        self._fade(self.memory)
        self._idle = 0
        self._right += sum(num_accepted)
        self._seen += sum(num_accepted) + sum(number < num_drafts for number in num_accepted)

    def forget(self) -> None:
        """Count a step without drafts: what was seen grows old, and after some hundred steps drafts are tried again."""
        self._idle += 1
        self._fade(self.idle_memory if self._idle < self.idle_steps else 0.0)

    def _fade(self, share: float) -> None:
        self._right *= share
        self._seen *= share


class DraftPolicy:
    """Chooses the number of drafts, anew for every batch.

    Args:
        most: drafts of a round, at most.
        budget: tokens up to which a draft attends to all, as dense attention does.
        costs: None: always draft ``most``.
        drafts_within_budget: whether such drafts may pay all the same, by copies of the weights.
    """

    MARGIN = 1.01  # what drafting must promise: costs are measured at start, and nothing is lost by a step without

    def __init__(self, most: int, budget: int, costs: Costs | None = None, drafts_within_budget: bool = False) -> None:
        self.most = most
        self.budget = budget
        self.costs = costs
        self.drafts_within_budget = drafts_within_budget
        self.acceptance = Acceptance()

    def observe(self, num_accepted: Sequence[int], num_drafts: int) -> None:
        """Learn from a step: what became of the drafts of the requests that drafted; 0 where there were none."""
        if num_drafts:
            self.acceptance.observe(num_accepted, num_drafts)
        else:
            self.acceptance.forget()

    def choose_num_drafts(self, lengths: Sequence[int], drafting: Sequence[bool]) -> int:
        """The number of drafts for the next round of a batch; 0 for a plain step.

        A round of ``k`` drafts takes ``k * draft + verify + round_ms`` milliseconds. With an acceptance of ``a`` a
        request that drafts expects ``1 + a + a² + … + aᵏ`` tokens of it, one that does not expects 1. Chosen is the
        ``k`` of most tokens per millisecond, unless a plain step, one token in ``dense`` milliseconds, has about as
        many.

        Args:
            lengths: by request, its cached tokens.
            drafting: by request, whether it may draft.
        """
        if not any(drafting):
            return 0
        if self.costs is None:
            return self.most
        if max(lengths) <= self.budget and not self.drafts_within_budget:
            return 0
        batch, cached = len(lengths), sum(lengths)
        # A draft of a shorter request is taken to cost as much as one at the budget.
        draft_ms = self.costs.draft.at(batch, sum(max(length, self.budget) for length in lengths))
        fixed_ms = self.costs.verify.at(batch, cached) + self.costs.round_ms
        best, best_speed = 0, self.MARGIN / self.costs.dense.at(batch, cached)  # tokens per request and millisecond
        accepted, share = 0.0, sum(drafting) / batch
        for num_drafts in range(1, self.most + 1):
            accepted += self.acceptance.rate**num_drafts
            speed = (1 + share * accepted) / (num_drafts * draft_ms + fixed_ms)
            if speed > best_speed:
                best, best_speed = num_drafts, speed
        return best
