"""The token set of LessIsMore: one set per request, shared by all heads (arXiv 2508.07101).

``reference`` needs torch and is loaded when one of its names is first used; ``budget`` needs nothing.
"""

from typing import TYPE_CHECKING

from lim_kernels.select.budget import MAX_BUDGET, BudgetSplit, check_device_limits, split_budget

if TYPE_CHECKING:
    from lim_kernels.select.reference import NOT_A_CANDIDATE, TokenSet, head_scores, select_token_set, unified_keys
else:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from lim_kernels.select import reference

        return getattr(reference, name)


__all__ = [
    "MAX_BUDGET",
    "NOT_A_CANDIDATE",
    "BudgetSplit",
    "TokenSet",
    "check_device_limits",
    "head_scores",
    "select_token_set",
    "split_budget",
    "unified_keys",
]
