"""How a token budget is divided into selected tokens, attention sinks and a recency window (arXiv 2508.07101).

Standard library only: the configuration layer uses this without loading torch.
"""

from dataclasses import dataclass

MAX_BUDGET = 2**31 - 1  # token positions are int32 on the device
MAX_DEVICE_BUDGET = 1 << 18  # slots of 8,192 requests are still numbered in int32
MAX_SELECTED = 8192  # one program of the device kernels sorts this many
MAX_RANKS = 1 << 24  # the device kernels search ranks of three digits of eight bits


@dataclass(frozen=True)
class BudgetParts:
    """The parts of a budget, in tokens; ``selected + sinks + recent == budget``.

    Attributes:
        budget: ``K``, the size of the set of every request that has more than ``K`` tokens.
        selected: ``m``, tokens chosen by the heads' ranking.
        sinks: ``s``, the first tokens of the sequence, always kept.
        recent: ``w``, the last tokens of the sequence, always kept.

    Raises:
        ValueError: the budget is below 1, a part is negative, or the parts do not add up to the budget.
    """

    budget: int
    selected: int
    sinks: int
    recent: int

    def __post_init__(self) -> None:
        _require_int("budget", self.budget, 1)
        for name in ("selected", "sinks", "recent"):
            _require_int(name, getattr(self, name), 0)
        total = self.selected + self.sinks + self.recent
        if total != self.budget:
            raise ValueError(f"selected + sinks + recent = {total}: expected the budget, {self.budget}")


def split_budget(budget: int, recency_ratio: float, sink_tokens: int) -> BudgetParts:
    """Divide ``budget`` tokens: ``m = int(K * (1 - r))`` selected, then the sinks, the rest recent.

    Sinks that do not fit into the ``K - m`` unselected tokens are dropped altogether, all to the recency window.

    Args:
        budget: ``K``, 1 to ``MAX_BUDGET`` tokens.
        recency_ratio: ``r``, the share of the budget that is not selected, 0 to 1.
        sink_tokens: ``s``, 0 to ``MAX_BUDGET`` tokens.

    Raises:
        ValueError: an argument is out of its range, or a count is not an integer.
    """
    _require_int("budget", budget, 1)
    _require_int("sink_tokens", sink_tokens, 0)
    if isinstance(recency_ratio, bool) or not isinstance(recency_ratio, int | float) or not 0 <= recency_ratio <= 1:
        raise ValueError(f"recency_ratio = {recency_ratio!r}: expected a number from 0 to 1")
    selected = int(budget * (1 - recency_ratio))
    unselected = budget - selected
    sinks = 0 if unselected < sink_tokens else sink_tokens
    return BudgetParts(budget=budget, selected=selected, sinks=sinks, recent=unselected - sinks)


def _require_int(name: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= MAX_BUDGET:
        raise ValueError(f"{name} = {value!r}: expected an integer from {minimum} to {MAX_BUDGET}")


def check_device_limits(parts: BudgetParts, num_qo_heads: int) -> None:
    """Check that the device kernels can serve a budget; the reference serves any.

    Raises:
        ValueError: one line with the limit and a way out.
    """
    if parts.budget > MAX_DEVICE_BUDGET:
        raise ValueError(f"budget={parts.budget}: expected at most {MAX_DEVICE_BUDGET} on a GPU; lower the budget")
    fix = "lower the budget or raise recency_ratio"
    if parts.selected > MAX_SELECTED:
        raise ValueError(
            f"budget={parts.budget} selects {parts.selected} tokens by rank: expected at most {MAX_SELECTED}; {fix}"
        )
    if parts.selected * num_qo_heads >= MAX_RANKS:
        raise ValueError(
            f"budget={parts.budget} selects {parts.selected} tokens by rank of {num_qo_heads} heads: expected a "
            f"product below {MAX_RANKS}; {fix}"
        )
