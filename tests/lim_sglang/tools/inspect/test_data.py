"""What `lim-sglang inspect` records, against the reference, ranks counted anew, and Hugging Face's generation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaForCausalLM

from lim_kernels.select.budget import BudgetParts, split_budget
from lim_kernels.select.reference import select_token_set
from lim_sglang.layer_plan import LayerRole
from lim_sglang.tools.analysis.model import LayerView, PolicyModel
from lim_sglang.tools.analysis.policies import LessIsMore
from lim_sglang.tools.inspect.data import Inspection, SelectEvent, inspect_generation, token_texts

from ..tiny_model import NUM_HEADS, PLAN, TOKENIZER

SPLIT = split_budget(24, 0.25, 2)
PROMPT = np.random.default_rng(3).integers(0, 256, 21).tolist()  # outgrows the budget with the fourth step
MAX_TOKENS = 16


class Spy(LessIsMore):
    """LessIsMore that keeps what every layer was given, and what it let the layer read."""

    def __init__(self, split: BudgetParts) -> None:
        super().__init__(PLAN, split)
        self.seen: dict[tuple[int, int], tuple[Tensor, list[int]]] = {}  # by length and layer: scores, positions

    def mask(self, view: LayerView) -> Tensor:
        mask = super().mask(view)
        self.seen[int(view.lengths[0]), view.layer] = view.scores, mask[0, 0].nonzero().flatten().tolist()
        return mask


@pytest.fixture(scope="module")
def spied(model: PolicyModel) -> tuple[Inspection, Spy]:
    spy = Spy(SPLIT)
    return inspect_generation(model, PROMPT, spy, MAX_TOKENS), spy


def beyond_budget(inspection: Inspection) -> list[SelectEvent]:
    return [event for event in inspection.events if event.length > SPLIT.budget]


def test_one_event_per_step_and_select_layer(spied: tuple[Inspection, Spy]) -> None:
    inspection, _ = spied
    assert len(inspection.output_ids) == MAX_TOKENS
    assert [(event.step, event.layer, event.length) for event in inspection.events] == [
        (step, layer, len(PROMPT) + step + 1) for step in range(MAX_TOKENS - 1) for layer in PLAN.select_layers
    ]
    assert len(beyond_budget(inspection)) == 2 * (MAX_TOKENS - 1 - 3)


def test_sets_are_those_of_the_reference_and_those_that_sparse_layers_read(spied: tuple[Inspection, Spy]) -> None:
    inspection, spy = spied
    for event in inspection.events:
        scores, _ = spy.seen[event.length, event.layer]
        expected = select_token_set(scores, torch.tensor([event.length]), SPLIT).positions[0]
        assert list(event.positions) == expected[expected >= 0].tolist()
        assert PLAN.role(event.layer + 1) is LayerRole.SPARSE
        assert list(event.positions) == spy.seen[event.length, event.layer + 1][1]


def test_the_set_is_sinks_then_chosen_then_window(spied: tuple[Inspection, Spy]) -> None:
    for event in beyond_budget(spied[0]):
        window = tuple(range(event.length - SPLIT.recent, event.length))
        assert (event.sinks, event.window_start) == (SPLIT.sinks, window[0])
        assert event.positions == (*range(SPLIT.sinks), *event.chosen, *window)
        assert len(event.chosen) == SPLIT.selected
        assert len(set(event.positions)) == SPLIT.budget


def test_within_the_budget_a_set_is_everything_and_nothing_is_ranked(spied: tuple[Inspection, Spy]) -> None:
    within = [event for event in spied[0].events if event.length <= SPLIT.budget]
    assert len(within) == 6
    for event in within:
        assert event.positions == tuple(range(event.length))
        assert (event.sinks, event.window_start, event.keys, event.chosen) == (0, event.length, (), ())


def test_keys_are_the_best_rank_and_its_head(spied: tuple[Inspection, Spy]) -> None:
    inspection, spy = spied
    for event in beyond_budget(inspection):
        scores = spy.seen[event.length, event.layer][0][0].numpy()[:, event.sinks : event.window_start]
        rankings = np.argsort(-scores, axis=1, kind="stable")
        places = [[ranking.tolist().index(t) for ranking in rankings] for t in range(scores.shape[1])]
        best = [min((rank, head) for head, rank in enumerate(ranks)) for ranks in places]
        assert [divmod(key, NUM_HEADS) for key in event.keys] == [best[t - event.sinks] for t in event.chosen]
        left_out = set(range(scores.shape[1])) - {t - event.sinks for t in event.chosen}
        assert max(divmod(key, NUM_HEADS) for key in event.keys) < min(best[t] for t in left_out)


def test_within_the_budget_generation_is_hugging_faces_greedy(model: PolicyModel, folder: Path) -> None:
    own = inspect_generation(model, PROMPT, LessIsMore(PLAN, split_budget(64, 0.25, 2)), MAX_TOKENS)
    plain = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    whole = plain.generate(torch.tensor([PROMPT]), do_sample=False, max_new_tokens=MAX_TOKENS, eos_token_id=None)
    assert list(own.output_ids) == whole[0, len(PROMPT) :].tolist()


def test_a_stop_token_ends_the_generation_and_belongs_to_it(model: PolicyModel, spied: tuple[Inspection, Spy]) -> None:
    outputs = spied[0].output_ids
    stop = outputs[5]
    counted: list[int] = []
    found = inspect_generation(model, PROMPT, LessIsMore(PLAN, SPLIT), MAX_TOKENS, {stop}, counted.append)
    expected = outputs[: outputs.index(stop) + 1]
    assert (found.output_ids, found.stopped, spied[0].stopped) == (expected, True, False)
    assert counted == list(range(1, len(expected) + 1))


def test_one_token_takes_no_decode_step(model: PolicyModel) -> None:
    found = inspect_generation(model, PROMPT, LessIsMore(PLAN, SPLIT), 1)
    assert (len(found.output_ids), found.events) == (1, ())


# The tokens' texts


def test_a_character_of_several_tokens_belongs_to_the_last() -> None:
    ids = TOKENIZER("aï漢\n🦊")["input_ids"]
    assert token_texts(TOKENIZER, ids) == ["a", "", "ï", "", "", "漢", "\n", "", "", "", "🦊"]


def test_an_unfinished_character_at_the_end_is_shown_as_such() -> None:
    ids = TOKENIZER("a漢")["input_ids"][:-1]
    assert token_texts(TOKENIZER, ids) == ["a", "", "�"]


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="�"), max_size=40))
def test_texts_together_are_the_text(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    texts = token_texts(TOKENIZER, ids)
    assert "".join(texts) == text
    assert len(texts) == len(ids)
