"""Counts what decode attends to, for ``/server_info`` and Prometheus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lim_sglang.config import LimConfig
from lim_sglang.layer_plan import LayerPlan, LayerRole

_current: DecodeMetrics | None = None


class DecodeMetrics:
    """Totals since start, kept on the host from lengths that the host knows anyway.

    Attributes:
        attended: Tokens read by attention, by role: summed over requests, steps and the layers of that role.
        context: What a dense backend would have read in the same layers.
    """

    def __init__(self, config: LimConfig, plan: LayerPlan, prometheus: bool = False) -> None:
        self.config = config
        self.plan = plan
        self.decode_steps = 0
        self.decode_rows = 0
        self.dense_rows_in_extend = 0
        self.attended = dict.fromkeys(LayerRole, 0)
        self.context = dict.fromkeys(LayerRole, 0)
        self.rounds: RoundMetrics | None = None
        self._prometheus = _Prometheus() if prometheus else None

    def add_rounds(self) -> RoundMetrics:
        """Count the rounds of the lossless mode as well; the decode steps are then those of the drafts."""
        self.rounds = RoundMetrics(prometheus=self._prometheus is not None)
        return self.rounds

    def observe_decode(self, seq_lens: Sequence[int]) -> None:
        """Count one decode step of requests that hold ``seq_lens`` tokens, the current one included.

        A request that decodes holds at least two tokens; rows of one token pad a captured batch and do not count.
        """
        seq_lens = [n for n in seq_lens if n > 1]
        full = sum(seq_lens)
        kept = sum(min(n, self.config.budget) for n in seq_lens)
        self.decode_steps += 1
        self.decode_rows += len(seq_lens)
        for role in LayerRole:
            layers = self.plan.count(role)
            attended = layers * (kept if role is LayerRole.SPARSE else full)
            self.attended[role] += attended
            self.context[role] += layers * full
            if self._prometheus is not None:
                self._prometheus.observe(role.name.lower(), attended, layers * full)

    def observe_mixed(self, rows: int) -> None:
        """Count decode rows that SGLang put into an extend batch, where attention is dense."""
        self.dense_rows_in_extend += rows

    def report(self) -> dict[str, Any]:
        """Configuration, plan and totals in plain JSON types."""
        plan: dict[str, Any] = {role.name.lower(): self.plan.count(role) for role in LayerRole}
        return {
            "config": self.config.to_dict(),
            "plan": plan | {"select_layers": list(self.plan.select_layers)},
            "counters": {
                "decode_steps": self.decode_steps,
                "decode_rows": self.decode_rows,
                "dense_rows_in_extend": self.dense_rows_in_extend,
                "attended_tokens": {role.name.lower(): n for role, n in self.attended.items()},
                "context_tokens": {role.name.lower(): n for role, n in self.context.items()},
            }
            | ({} if self.rounds is None else {"lossless": self.rounds.report()}),
        }


class RoundMetrics:
    """Totals of the lossless mode since start.

    ``report`` has:
        verify_steps: Dense passes over the drafts of a batch.
        plain_steps: Dense steps without drafts.
        request_rounds: Requests that drafted, summed over the verify steps; not in a step that came after their end.
        drafted_tokens: Their drafts.
        accepted_tokens: Those that dense attention accepted: output, but for what lies behind a request's end.
    """

    _NAMES = ("verify_steps", "plain_steps", "request_rounds", "drafted_tokens", "accepted_tokens")

    def __init__(self, prometheus: bool = False) -> None:
        self._totals = dict.fromkeys(self._NAMES, 0)
        self._counters: dict[str, Any] = {}
        if prometheus:
            from prometheus_client import Counter

            for name in self._NAMES:
                text = f"Lossless mode: {name.replace('_', ' ')}."
                self._counters[name] = Counter(f"sglang:lim_{name}", text)

    def observe_verify_step(self) -> None:
        self._add(verify_steps=1)

    def observe_drafts(self, requests: int, drafts: int, accepted: int) -> None:
        """Count the round of ``requests`` that drafted ``drafts`` tokens each, of which ``accepted`` were, together."""
        self._add(request_rounds=requests, drafted_tokens=requests * drafts, accepted_tokens=accepted)

    def observe_plain_step(self) -> None:
        self._add(plain_steps=1)

    def _add(self, **amounts: int) -> None:
        for name, amount in amounts.items():
            self._totals[name] += amount
            if name in self._counters:
                self._counters[name].inc(amount)

    def report(self) -> dict[str, int]:
        return dict(self._totals)


class _Prometheus:
    """The same totals as counters that SGLang's ``/metrics`` shows with ``--enable-metrics``."""

    def __init__(self) -> None:
        from prometheus_client import Counter

        labels = ["role"]
        self.attended = Counter("sglang:lim_attended_tokens", "Tokens read by decode attention, by layer role.", labels)
        self.context = Counter("sglang:lim_context_tokens", "Tokens that dense attention would have read.", labels)

    def observe(self, role: str, attended: int, context: int) -> None:
        self.attended.labels(role).inc(attended)
        self.context.labels(role).inc(context)


def publish(metrics: DecodeMetrics) -> None:
    """Make ``metrics`` the ones that this process reports."""
    global _current
    _current = metrics


def report() -> dict[str, Any] | None:
    """The published metrics' report, or None in a process that serves no ``lim`` backend."""
    return None if _current is None else _current.report()
