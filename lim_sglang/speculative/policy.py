"""How many tokens to draft: what makes most tokens a second by measured costs and acceptance; none where it loses."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepTime:
    """Milliseconds of one kind of step.

    Attributes:
        batches: ascending batch sizes that were measured.
        base_ms: by batch size, what a step takes beside what it reads of the cache.
        token_ms: by batch size, what every cached token of a request of the batch adds.
    """

    batches: tuple[int, ...]
    base_ms: tuple[float, ...]
    token_ms: tuple[float, ...]

    def at(self, batch: int, tokens: int) -> float:
        """For ``batch`` requests that hold ``tokens`` in total; between measured sizes as on a line."""
        right = min(bisect_left(self.batches, batch), len(self.batches) - 1)
        left = max(0, right - 1) if batch < self.batches[right] else right
        width = self.batches[right] - self.batches[left]
        share = max(0.0, (batch - self.batches[left]) / width) if width else 0.0
        base, token = (
            values[left] + share * (values[right] - values[left]) for values in (self.base_ms, self.token_ms)
        )
        return base + token * tokens


@dataclass(frozen=True)
class Costs:
    """What a round and a step without drafts take.

    Attributes:
        dense: a step without drafts.
        draft: one draft of every request.
        verify: the pass over all drafts.
        round_ms: what a round adds to its steps: the scheduler waits for its outcome.
    """

    dense: StepTime
    draft: StepTime
    verify: StepTime
    round_ms: float = 0.0


@dataclass
class Acceptance:
    """Which share of drafts is accepted, given that those before were: recent rounds, and a prior.

    Attributes:
        prior: the share before anything was seen, and what steps without drafts drift back to.
        weight: how many drafts the prior counts for.
        memory: what remains of older rounds' weight after one more.
        idle_memory: what remains after a step without drafts.
    """

    prior: float = 0.9
    weight: float = 20.0
    memory: float = 0.95
    idle_memory: float = 0.998
    _right: float = field(default=0.0, init=False)
    _seen: float = field(default=0.0, init=False)

    @property
    def rate(self) -> float:
        """Between 0 and 1."""
        return (self._right + self.prior * self.weight) / (self._seen + self.weight)

    def observe(self, accepted: Sequence[int], drafts: int) -> None:
        """Count a round: by request, how many of its drafts were accepted; none after the first wrong one counts."""
        self._fade(self.memory)
        self._right += sum(accepted)
        self._seen += sum(accepted) + sum(number < drafts for number in accepted)

    def forget(self) -> None:
        """Count a step without drafts: what was seen grows old, and after some hundred steps drafts are tried again."""
        self._fade(self.idle_memory)

    def _fade(self, share: float) -> None:
        self._right *= share
        self._seen *= share


class DraftPolicy:
    """Chooses for every batch.

    Args:
        most: drafts of a round, at most.
        budget: tokens up to which a draft is what dense attention would say, and costs as much.
        costs: None: always draft ``most``.
    """

    MARGIN = 1.01  # what drafting must promise: costs are measured at start, and nothing is lost by a step without

    def __init__(self, most: int, budget: int, costs: Costs | None = None) -> None:
        self.most = most
        self.budget = budget
        self.costs = costs
        self.acceptance = Acceptance()

    def observe(self, accepted: Sequence[int], drafts: int) -> None:
        """Learn from a step: what became of the drafts of the requests that drafted; 0 where there were none."""
        if drafts:
            self.acceptance.observe(accepted, drafts)
        else:
            self.acceptance.forget()

    def drafts(self, lengths: Sequence[int], drafting: Sequence[bool]) -> int:
        """For requests of ``lengths`` cached tokens, those of which draft that may; 0 for a step without drafts."""
        if not any(drafting):
            return 0
        if self.costs is None:
            return self.most
        if max(lengths) <= self.budget:
            return 0
        batch, rate, costs = len(lengths), self.acceptance.rate, self.costs
        cached, read = sum(lengths), sum(max(length, self.budget) for length in lengths)
        draft, fixed = costs.draft.at(batch, read), costs.verify.at(batch, cached) + costs.round_ms
        best, highest = 0, self.MARGIN / costs.dense.at(batch, cached)  # tokens per request and millisecond
        run = 0.0  # accepted drafts to expect
        for number in range(1, self.most + 1):
            run += rate**number
            speed = (1 + run * sum(drafting) / batch) / (fixed + number * draft)
            if speed > highest:
                best, highest = number, speed
        return best
