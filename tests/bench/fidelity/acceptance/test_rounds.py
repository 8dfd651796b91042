"""Rounds on a tiny random model, against ones that draft token by token; their chances, against an enumeration."""

from __future__ import annotations

from itertools import islice, product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from transformers import LlamaConfig, LlamaForCausalLM

from bench.fidelity.acceptance import rounds
from bench.fidelity.acceptance.rounds import (
    INT8,
    KEPT,
    KINDS,
    LIM,
    WINDOW,
    Round,
    Written,
    draft_policy,
    quantize_model,
    run_round,
)
from lim_kernels.linear.reference import quantize
from lim_kernels.select.budget import split_budget
from lim_kernels.select.reference import select_token_set
from lim_sglang.layer_plan import LayerPlan
from lim_sglang.tools.analysis.model import LayerView, PolicyModel, Prefix
from lim_sglang.tools.analysis.policies import Dense

LAYERS, PROMPT, TOKENS, DRAFTS, BUDGET, VOCAB = 5, 90, 22, 4, 20, 61
PLAN = LayerPlan.from_select_layers(LAYERS, (1, 3))
CHOSEN_BY = [1, 1, 1, 3, 3]  # the layer whose set a layer keeps
STARTS = range(1, TOKENS - DRAFTS)


@pytest.fixture(scope="module")
def model() -> PolicyModel:
    torch.manual_seed(12)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        num_key_value_heads=2,
        initializer_range=0.2,  # with this seed greedy text does not repeat itself, and drafts are right now and then
    )
    return PolicyModel(LlamaForCausalLM(config))


@pytest.fixture(scope="module")
def prompt(model: PolicyModel) -> Prefix:
    ids = torch.randint(0, VOCAB, (PROMPT,), generator=torch.Generator().manual_seed(1))
    return model.prefill(ids.tolist())


@pytest.fixture(scope="module")
def texts(model: PolicyModel, prompt: Prefix) -> dict[float, Written]:
    return {t: rounds.write(model, prompt, PLAN, [BUDGET], TOKENS, t, "seed") for t in (0.0, 1.0)}


def test_the_text_is_the_dense_models(model: PolicyModel, prompt: Prefix, texts: dict[float, Written]) -> None:
    greedy = list(islice(model.generate(prompt, Dense()), TOKENS))
    assert texts[0.0].ids.tolist() == greedy
    assert len(set(greedy)) > 10, "text that repeats itself hides a wrong index"
    assert texts[1.0].ids.tolist() != greedy
    assert rounds.write(model, prompt, PLAN, [], TOKENS, 1.0, "seed").ids.tolist() == texts[1.0].ids.tolist()
    assert rounds.write(model, prompt, PLAN, [], TOKENS, 1.0, "another").ids.tolist() != texts[1.0].ids.tolist()


def drafted(model: PolicyModel, written: Written, start: int, kind: str) -> int:
    """Accepted drafts of a greedy round as a server runs it: draft one by one, then verify, and look."""
    prefix = written.before(start)
    bonus = int(written.ids[start])
    sets = written.recorder.sets(BUDGET, start - 1, prefix.length)
    tokens, ahead = [bonus], prefix
    for _ in range(DRAFTS):
        logits, ahead = model.decode(ahead, tokens[-1:], draft_policy(kind, PLAN, BUDGET, sets))
        tokens.append(int(logits[-1].argmax()))
    verified, _ = model.decode(prefix, tokens, Dense())
    right = [int(logits.argmax()) == token for logits, token in zip(verified, tokens[1:], strict=False)]
    return next((i for i, same in enumerate(right) if not same), DRAFTS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_greedy_round_is_the_one_drafted_step_by_step(
    model: PolicyModel, texts: dict[float, Written], kind: str
) -> None:
    expected = [drafted(model, texts[0.0], start, kind) for start in STARTS]
    found = [run_round(model, PLAN, texts[0.0], start, DRAFTS, kind, BUDGET) for start in STARTS]
    assert [float(one.chances().sum()) for one in found] == expected
    assert [float(one.chances(greedy_drafts=True).sum()) for one in found] == expected
    assert len(set(expected)) > 2, "nothing to tell apart"


def test_a_model_of_int8_weights_looks_up_its_own_embedding(model: PolicyModel) -> None:
    """Whose matrix is the head as well."""
    rounded = dict(quantize_model(model).model.named_parameters(remove_duplicate=False))
    for name, weight in model.model.named_parameters(remove_duplicate=False):
        is_rounded = name.endswith("proj.weight") or name == "lm_head.weight"
        expected = quantize(weight).dequantize() if is_rounded else weight
        torch.testing.assert_close(rounded[name], expected, rtol=0, atol=0)


def test_rounds_of_a_model_of_int8_weights_are_those_of_a_model_loaded_with_them(
    model: PolicyModel, texts: dict[float, Written]
) -> None:
    loaded = PolicyModel(LlamaForCausalLM(LlamaConfig.from_dict(model.model.config.to_dict())))
    rounded = quantize_model(model)
    loaded.model.load_state_dict(rounded.model.state_dict())
    for start in STARTS:
        found = run_round(rounded, PLAN, texts[1.0], start, DRAFTS, INT8, BUDGET)
        expected = run_round(loaded, PLAN, texts[1.0], start, DRAFTS, LIM, BUDGET)
        torch.testing.assert_close(found.draft, expected.draft, rtol=0, atol=1e-5)
        own = run_round(model, PLAN, texts[1.0], start, DRAFTS, LIM, BUDGET)
        assert float((found.draft - own.draft).abs().mean()) > 1e-3


def test_a_drawn_round_compares_both_models_at_the_texts_tokens(
    model: PolicyModel, texts: dict[float, Written]
) -> None:
    """Draft ``i`` is judged by logits behind the same tokens, dense ones computed anew for every round."""
    written = texts[1.0]
    for start in (1, 7):
        found = run_round(model, PLAN, written, start, DRAFTS, WINDOW, BUDGET)
        fed = written.ids[start : start + DRAFTS].tolist()
        dense, _ = model.decode(written.before(start), fed, Dense())
        torch.testing.assert_close(found.target, dense, rtol=0, atol=1e-4)
        assert float((found.draft - dense).abs().max()) > 0.01
        assert found.ids.tolist() == written.ids[start + 1 : start + 1 + DRAFTS].tolist()
        assert found.temperature == 1


def read_by(model: PolicyModel, written: Written, start: int, kind: str) -> dict[int, list[list[int]]]:
    """By layer, the positions that every draft step reads."""
    seen = {}

    def observe(view: LayerView, mask: Tensor) -> None:
        read = (mask & view.causal)[:, 0]
        seen[view.layer] = [row.nonzero()[:, 0].tolist() for row in read]

    prefix = written.before(start)
    policy = draft_policy(kind, PLAN, BUDGET, written.recorder.sets(BUDGET, start - 1, prefix.length))
    model.decode(prefix, written.ids[start : start + DRAFTS].tolist(), policy, observe)
    return seen


@pytest.mark.parametrize("start", [1, 9])
def test_kept_sets_are_the_last_verified_tokens(model: PolicyModel, texts: dict[float, Written], start: int) -> None:
    written, chosen = texts[0.0], {}

    def observe(view: LayerView, _mask: Tensor) -> None:
        [positions] = select_token_set(view.scores, view.lengths, split_budget(BUDGET, 0.25, 4)).positions.tolist()
        chosen[view.layer] = sorted(positions)

    last = written.prefix.cut(PROMPT + start - 1, written.logits[0])
    model.decode(last, [int(written.ids[start - 1])], Dense(), observe)
    seen = read_by(model, written, start, KEPT)
    for layer, chooser in enumerate(CHOSEN_BY):
        own = range(PROMPT + start, PROMPT + start + DRAFTS)
        assert seen[layer] == [[*chosen[chooser], *own[: step + 1]] for step in range(DRAFTS)]
    assert seen[0] != seen[4], "two layers choose"


def test_the_window_is_sinks_and_the_latest_in_every_layer(model: PolicyModel, texts: dict[float, Written]) -> None:
    for read in read_by(model, texts[0.0], 3, WINDOW).values():
        lengths = range(PROMPT + 4, PROMPT + 4 + DRAFTS)
        assert read == [[0, 1, 2, 3, *range(length - BUDGET + 4, length)] for length in lengths]


def test_drafts_that_read_everything_are_accepted(model: PolicyModel, texts: dict[float, Written]) -> None:
    for written in texts.values():
        for start in STARTS:
            rounds.check(model, PLAN, written, start, DRAFTS)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("off", [1, 3])
def test_a_verifier_that_is_off_is_noticed(
    model: PolicyModel, texts: dict[float, Written], temperature: float, off: int
) -> None:
    """The check can fail: logits of another position, as a wrong index would take them."""
    right = texts[temperature]
    logits = torch.cat([right.logits[:off], right.logits[off:].roll(1, 0)])
    wrong = Written(temperature, right.ids, logits, right.prefix, right.recorder)
    with pytest.raises(
        rounds.UnequalError, match=r"at K = 112, which leaves nothing out: [\d.]+ of 4 drafts .* expected all"
    ):
        rounds.check(model, PLAN, wrong, 1, DRAFTS)


TOY_VOCAB = 4
Ids = tuple[int, ...]


def toy_model(seed: int) -> dict[Ids, Tensor]:
    """[V] logits behind every string of fewer than three tokens."""
    generator = torch.Generator().manual_seed(seed)
    strings = [ids for length in range(3) for ids in product(range(TOY_VOCAB), repeat=length)]
    return {ids: 2 * torch.randn(TOY_VOCAB, generator=generator) for ids in strings}


TARGET, DRAFT = toy_model(1), toy_model(2)


def chain(temperature: float, drafts: int, greedy_drafts: bool, ids: Ids = ()) -> float:
    """Mean accepted drafts behind ``ids``, by all that may be drafted: the definition, which knows no text."""
    if len(ids) == drafts:
        return 0.0
    p, q = (TARGET[ids] / temperature).softmax(-1), (DRAFT[ids] / temperature).softmax(-1)
    if greedy_drafts:
        q = one_hot(DRAFT[ids].argmax(), TOY_VOCAB)
    chances = {x: float(q[x] * min(1, p[x] / q[x])) for x in range(TOY_VOCAB) if q[x]}
    return sum(chance * (1 + chain(temperature, drafts, greedy_drafts, (*ids, x))) for x, chance in chances.items())


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
@pytest.mark.parametrize("drafts", [1, 2, 3])
@pytest.mark.parametrize("greedy_drafts", [False, True])
def test_the_mean_is_that_of_drafts_drawn_and_rejected(temperature: float, drafts: int, greedy_drafts: bool) -> None:
    """The mean over all texts that the target may write, against the algorithm itself."""
    mean = 0.0
    for ids in product(range(TOY_VOCAB), repeat=drafts):
        p, q = (torch.stack([logits[ids[:i]] for i in range(drafts)]) for logits in (TARGET, DRAFT))
        written = float((p / temperature).softmax(-1)[range(drafts), list(ids)].prod())
        mean += written * float(Round(p, q, torch.tensor(ids), temperature).chances(greedy_drafts).sum())
    expected = chain(temperature, drafts, greedy_drafts)
    assert 0.1 < expected < drafts - 0.1, "nothing to tell apart"
    assert mean == pytest.approx(expected, abs=1e-5)
