"""What `lim-sglang inspect` records, against the reference, ranks counted anew, and Hugging Face's generation."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from lim_kernels.select.budget import BudgetParts, split_budget
from lim_kernels.select.reference import select_token_set
from lim_sglang.layer_plan import LayerPlan, LayerRole
from lim_sglang.tools.analysis.model import LayerView, PolicyModel
from lim_sglang.tools.analysis.policies import LessIsMore
from lim_sglang.tools.inspect.data import Inspection, inspect_generation, token_texts

from ..tiny_model import HYBRID_LAYERS, NUM_HEADS, PLAN, TOKENIZER

SPLIT = split_budget(24, 0.25, 2)
PROMPT = np.random.default_rng(3).integers(0, 256, 21).tolist()  # outgrows the budget with the fourth step
MAX_TOKENS = 16
HYBRID_PLAN = LayerPlan.from_select_layers(12, (5, 8)).limited_to(HYBRID_LAYERS, 0, 12)


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


def test_sets_are_those_of_the_reference_and_those_that_sparse_layers_read(spied: tuple[Inspection, Spy]) -> None:
    """One event per step and select layer."""
    inspection, spy = spied
    at = [(len(PROMPT) + step, layer) for step in range(1, MAX_TOKENS) for layer in PLAN.select_layers]
    for event, (length, layer) in zip(inspection.events, at, strict=True):
        assert event.length == length
        expected = select_token_set(spy.seen[length, layer][0], torch.tensor([length]), SPLIT).positions[0]
        assert list(event.positions) == expected[expected >= 0].tolist()
        assert PLAN.role(layer + 1) is LayerRole.SPARSE
        assert list(event.positions) == spy.seen[length, layer + 1][1]


def test_keys_are_the_best_rank_and_its_head(spied: tuple[Inspection, Spy]) -> None:
    """Within the budget nothing is ranked."""
    inspection, spy = spied
    assert [event.keys for event in inspection.events if event.length <= SPLIT.budget] == [()] * 6
    for event, layer in list(zip(inspection.events, cycle(PLAN.select_layers), strict=False))[6:]:
        scores = spy.seen[event.length, layer][0][0].numpy()[:, SPLIT.sinks : event.length - SPLIT.recent]
        rankings = np.argsort(-scores, axis=1, kind="stable")
        places = [[ranking.tolist().index(t) for ranking in rankings] for t in range(scores.shape[1])]
        best = [min((rank, head) for head, rank in enumerate(ranks)) for ranks in places]
        chosen = event.positions[SPLIT.sinks : -SPLIT.recent]
        assert [divmod(key, NUM_HEADS) for key in event.keys] == [best[t - SPLIT.sinks] for t in chosen]


@pytest.mark.parametrize(("made", "plan"), [("folder", PLAN), ("hybrid_folder", HYBRID_PLAN)], ids=["llama", "hybrid"])
def test_within_the_budget_generation_is_hugging_faces_greedy(
    made: str, plan: LayerPlan, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(made)
    policy = LessIsMore(plan, split_budget(64, 0.25, 2))
    own = inspect_generation(PolicyModel.load(folder), PROMPT, policy, MAX_TOKENS)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
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


# The tokens' texts


def test_a_character_of_several_tokens_belongs_to_the_last() -> None:
    ids = TOKENIZER("aï漢\n🦊")["input_ids"]
    assert token_texts(TOKENIZER, ids) == ["a", "", "ï", "", "", "漢", "\n", "", "", "", "🦊"]


def test_an_unfinished_character_at_the_end_is_shown_as_such() -> None:
    ids = TOKENIZER("a漢")["input_ids"][:-1]
    assert token_texts(TOKENIZER, ids) == ["a", "", "�"]


@given(st.text(st.characters(codec="utf-8", exclude_characters="�"), max_size=40))
def test_texts_together_are_the_text(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    texts = token_texts(TOKENIZER, ids)
    assert "".join(texts) == text
    assert len(texts) == len(ids)
