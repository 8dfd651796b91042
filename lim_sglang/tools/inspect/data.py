"""What the select layers chose while a model generated: the data behind `lim-sglang inspect`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lim_kernels.select.budget import BudgetParts
from lim_kernels.select.reference import select_token_set, unified_ranks
from lim_sglang.layer_plan import LayerRole
from lim_sglang.tools.analysis.model import LayerView, PolicyModel
from lim_sglang.tools.analysis.policies import LessIsMore

_HALF_A_CHARACTER = "�"


@dataclass(frozen=True)
class SelectEvent:
    """What one SELECT layer chose in one decode step.

    Attributes:
        length: ``n``, tokens in the cache, the fed one included.
        positions: the token set, ascending; ``min(n, K)`` of them.
        keys: of the positions between sinks and window, in their order: ``rank * H + head`` of the head that ranks
            the token best, both from 0 (``lim_kernels.select.reference.unified_ranks``). None within the budget.
    """

    length: int
    positions: tuple[int, ...]
    keys: tuple[int, ...]


@dataclass(frozen=True)
class Inspection:
    """One greedy generation.

    Attributes:
        prompt_ids, output_ids: token ids; every output id but the last was fed by a decode step.
        events: by step, then by layer.
        stopped: whether an end-of-sequence token ended it.
    """

    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    events: tuple[SelectEvent, ...]
    stopped: bool


def _event(parts: BudgetParts, view: LayerView) -> SelectEvent:
    """What a SELECT layer chose in the one step of the view."""
    length = int(view.lengths[0])
    positions = select_token_set(view.scores, view.lengths, parts).positions[0, : min(length, parts.budget)]
    chosen = positions[parts.sinks : parts.sinks + parts.selected] if length > parts.budget else positions[:0]
    keys = unified_ranks(view.scores, view.lengths, parts)[0, chosen]
    return SelectEvent(length, tuple(positions.tolist()), tuple(keys.tolist()))


def inspect_generation(
    model: PolicyModel,
    prompt_ids: Sequence[int],
    policy: LessIsMore,
    max_tokens: int,
    stop_ids: Collection[int] = (),
    on_token: Callable[[int], None] = lambda count: None,
) -> Inspection:
    """Generate greedily, prefill dense and every decode step by ``policy``, and record the token sets.

    Args:
        model: the model; its layers are those of ``policy.plan``.
        prompt_ids: at least one token.
        policy: who selects, with which budget.
        max_tokens: generated tokens at most, at least 1.
        stop_ids: tokens that end the generation; they belong to it.
        on_token: called with the number of tokens generated so far.
    """
    events: list[SelectEvent] = []

    def record(view: LayerView, _mask: Tensor) -> None:
        if policy.plan.role(view.layer) is LayerRole.SELECT:
            events.append(_event(policy.parts, view))

    output: list[int] = []
    for token in model.generate(model.prefill(prompt_ids), policy, observer=record):
        output.append(token)
        on_token(len(output))
        if len(output) >= max_tokens or token in stop_ids:
            break
    return Inspection(tuple(prompt_ids), tuple(output), tuple(events), output[-1] in stop_ids)


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; together they are the decoded text.

    A token that ends inside a character adds nothing, and the one that completes the character adds it whole.
    """

    def text_of(start: int, end: int) -> str:
        part = list(ids[start:end])
        return str(tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    texts, start, shown = [], 0, 0  # tokens start..shown are decoded again, as the left neighbours of the next one
    for end in range(1, len(ids) + 1):
        text = text_of(start, end)
        if text.endswith(_HALF_A_CHARACTER) and end < len(ids):
            texts.append("")
            continue
        texts.append(text[len(text_of(start, shown)) :])
        start, shown = shown, end
    return texts
