"""Counts what decode attends to, for ``/server_info`` and Prometheus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lim_sglang.config import LimConfig
from lim_sglang.layer_plan import LayerPlan, LayerRole

_current: DecodeMetrics | None = None


class DecodeMetrics:
    """Totals since start, kept on the host from lengths that the host knows anyway.

    A decode step adds a few numbers, as every layer of a role reads the same; the layers' counts multiply the totals
    when they are read.

    Attributes:
        decode_rows: requests, summed over the decode steps.
        context_tokens: the tokens that these requests held: what a layer reads that attends to all of them.
        kept_tokens: what a SPARSE layer read of them, at most the budget for each.
        window_tokens: what a WINDOW layer read of them.
    """

    def __init__(self, config: LimConfig, plan: LayerPlan, prometheus: bool = False) -> None:
        self.config = config
        self.plan = plan
        self.decode_steps = self.decode_rows = self.dense_rows_in_extend = 0
        self.context_tokens = self.kept_tokens = self.window_tokens = 0
        self.rounds: RoundMetrics | None = None
        self._layers = {role: plan.count(role) for role in plan.kinds}
        self._prometheus = _Prometheus(self._layers) if prometheus else None

    def add_rounds(self, draft_weights: Any = None) -> RoundMetrics:
        """Count the rounds of the lossless mode as well; the decode steps are then those of the drafts.

        Args:
            draft_weights: the ``DraftWeights`` that drafts multiply by; None for the model's own.
        """
        self.rounds = RoundMetrics(prometheus=self._prometheus is not None, draft_weights=draft_weights)
        return self.rounds

    def observe_decode(self, seq_lens: Sequence[int]) -> None:
        """Count one decode step of requests that hold ``seq_lens`` tokens, the current one included.

        A request that decodes holds at least two tokens; rows of one token pad a captured batch and do not count.
        """
        rows = context = kept = within = 0
        budget, window = self.config.budget, self.plan.window_tokens
        for length in seq_lens:
            if length > 1:
                rows += 1
                context += length
                kept += length if length < budget else budget
                within += length if length < window else window
        self.decode_steps += 1
        self.decode_rows += rows
        self.context_tokens += context
        self.kept_tokens += kept
        self.window_tokens += within
        if self._prometheus is not None:
            self._prometheus.observe(*_read(context, kept, within))

    def observe_mixed(self, rows: int) -> None:
        """Count decode rows that SGLang put into an extend batch, where attention is dense."""
        self.dense_rows_in_extend += rows

    def report(self) -> dict[str, Any]:
        """Configuration, plan and totals in plain JSON types.

        ``attended_tokens`` are those that attention read, by role, summed over requests, steps and the layers of that
        role; ``context_tokens`` what a dense backend would have read in the same layers.
        """
        plan: dict[str, Any] = {role.value: layers for role, layers in self._layers.items()}
        attended, dense = _read(self.context_tokens, self.kept_tokens, self.window_tokens)
        return {
            "config": self.config.to_dict(),
            "plan": plan | {"select_layers": list(self.plan.select_layers)},
            "counters": {
                "decode_steps": self.decode_steps,
                "decode_rows": self.decode_rows,
                "dense_rows_in_extend": self.dense_rows_in_extend,
                "attended_tokens": {role.value: layers * attended[role] for role, layers in self._layers.items()},
                "context_tokens": {role.value: layers * dense[role] for role, layers in self._layers.items()},
            }
            | ({} if self.rounds is None else {"lossless": self.rounds.report()}),
        } | ({} if self.rounds is None else {"lossless": self.rounds.describe()})


def _read(context: int, kept: int, within: int) -> tuple[dict[LayerRole, int], dict[LayerRole, int]]:
    """By role, the tokens that a layer reads, and those that it would read under dense attention.

    Args:
        context: all tokens of the requests.
        kept: those of them in the sets.
        within: those of them in the window.
    """
    dense = dict.fromkeys(LayerRole, context) | {LayerRole.WINDOW: within}
    return dense | {LayerRole.SPARSE: kept}, dense


class RoundMetrics:
    """Totals of the lossless mode since start.

    ``report`` has:
        verify_steps: Dense passes over the drafts of a batch.
        plain_steps: Dense steps without drafts.
        request_rounds: Requests that drafted, summed over the verify steps; not in a step that came after their end.
        drafted_tokens: Their drafts.
        accepted_tokens: Those that dense attention accepted: output, but for what lies behind a request's end.
        accepted_first_drafts: Requests whose first draft was accepted. Over ``request_rounds`` it is the
            ``first_draft_acceptance``: with the model's own weights, how often sparse attention says the next token
            that dense attention says, on this traffic.
    """

    _NAMES = (
        *("verify_steps", "plain_steps", "request_rounds", "drafted_tokens", "accepted_tokens"),
        "accepted_first_drafts",
    )

    def __init__(self, prometheus: bool = False, draft_weights: Any = None) -> None:
        self._draft_weights = draft_weights
        self._totals = dict.fromkeys(self._NAMES, 0)
        self._counters: dict[str, Any] = {}
        if prometheus:
            from prometheus_client import Counter

            for name in self._NAMES:
                text = f"Lossless mode: {name.replace('_', ' ')}."
                self._counters[name] = Counter(f"sglang:lim_{name}", text)

    def observe_verify_step(self) -> None:
        self._add(verify_steps=1)

    def observe_drafts(self, num_accepted: Sequence[int], num_drafts: int) -> None:
        """Count a round: by request that drafted, how many of its ``num_drafts`` drafts were accepted."""
        requests = len(num_accepted)
        self._add(
            request_rounds=requests,
            drafted_tokens=requests * num_drafts,
            accepted_tokens=sum(num_accepted),
            accepted_first_drafts=sum(number > 0 for number in num_accepted),
        )

    def observe_plain_step(self) -> None:
        self._add(plain_steps=1)

    def _add(self, **amounts: int) -> None:
        for name, amount in amounts.items():
            self._totals[name] += amount
            if name in self._counters:
                self._counters[name].inc(amount)

    def report(self) -> dict[str, int]:
        return dict(self._totals)

    def describe(self) -> dict[str, Any]:
        """What drafts multiply by, and the share of rounds whose first draft was accepted; None before the first."""
        return {
            "first_draft_acceptance": first_draft_acceptance(self._totals),
            "draft_weights": self._draft_weights.report() if self._draft_weights else {"format": "model"},
        }


def first_draft_acceptance(totals: Mapping[str, int]) -> float | None:
    """The share of rounds whose first draft was accepted, by totals of ``RoundMetrics``; None before the first."""
    rounds = totals["request_rounds"]
    return totals["accepted_first_drafts"] / rounds if rounds else None


class _Prometheus:
    """The same totals as counters that SGLang's ``/metrics`` shows with ``--enable-metrics``."""

    def __init__(self, layers: Mapping[LayerRole, int]) -> None:
        from prometheus_client import Counter

        labels = ["role"]
        attended = Counter("sglang:lim_attended_tokens", "Tokens read by decode attention, by layer role.", labels)
        context = Counter("sglang:lim_context_tokens", "Tokens that dense attention would have read.", labels)
        self._counters = [
            (number, role, attended.labels(role.value), context.labels(role.value)) for role, number in layers.items()
        ]

    def observe(self, attended: Mapping[LayerRole, int], dense: Mapping[LayerRole, int]) -> None:
        """Count a step by what a layer of every role read, and what it would have read under dense attention."""
        for layers, role, attended_counter, context_counter in self._counters:
            attended_counter.inc(layers * attended[role])
            context_counter.inc(layers * dense[role])


def publish(metrics: DecodeMetrics) -> None:
    """Make ``metrics`` the ones that this process reports."""
    global _current
    _current = metrics


def report() -> dict[str, Any] | None:
    """The published metrics' report, or None in a process that serves no ``lim`` backend."""
    return None if _current is None else _current.report()
