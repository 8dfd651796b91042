"""The sampler alone: exact by enumeration on small vocabularies, filtered as SGLang filters, greedy by equality."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lim_sglang.speculative import sampling
from lim_sglang.speculative.sampling import (
    Drafts,
    SamplingRule,
    distribution,
    may_draft,
    verify,
    verify_greedy,
    verify_sampled,
)

VOCABULARY, DRAFTS, GRID = 3, 2, 8
# All probabilities are multiples of 1/16, proposals 1/4 or 1/2: acceptances are multiples of 1/8, which the grid hits.
PROPOSALS = ([4, 8, 4], [8, 4, 4], [4, 4, 8])
TARGETS = ([2, 6, 8], [16, 0, 0], [0, 8, 8], [5, 5, 6], [4, 8, 4])


def tables(seed: int, rows: tuple[list[int], ...]) -> dict[tuple[int, ...], Tensor]:
    """A distribution after every prefix of drafts, of up to ``DRAFTS`` tokens."""
    draw = torch.Generator().manual_seed(seed)
    prefixes = [p for n in range(DRAFTS + 1) for p in itertools.product(range(VOCABULARY), repeat=n)]
    chosen = torch.randint(len(rows), (len(prefixes),), generator=draw).tolist()
    return {p: torch.tensor(rows[row], dtype=torch.float64) / 16 for p, row in zip(prefixes, chosen, strict=True)}


def likelihood(table: dict[tuple[int, ...], Tensor], path: tuple[int, ...]) -> float:
    """Of a path, token by token."""
    return float(torch.stack([table[path[:n]][token] for n, token in enumerate(path)]).prod()) if path else 1.0


@pytest.mark.parametrize("limit", range(DRAFTS + 1))
@pytest.mark.parametrize("seed", range(12))
def test_the_output_is_the_targets_by_enumeration(monkeypatch: pytest.MonkeyPatch, seed: int, limit: int) -> None:
    """All drafts and all uniform numbers of a grid at once; whatever a round leaves open is drawn from the target."""
    target, proposal = tables(seed, TARGETS), tables(seed + 100, PROPOSALS)
    paths = list(itertools.product(range(VOCABULARY), repeat=DRAFTS))
    uniforms = list(itertools.product(range(GRID), repeat=DRAFTS))
    cases = list(itertools.product(paths, uniforms))
    u = torch.tensor([grid for _, grid in cases], dtype=torch.float64).add(0.5) / GRID
    weights: list[Tensor] = []

    def sample(probs: Tensor, _generator: None) -> Tensor:
        weights.append(probs / probs.sum(-1, keepdim=True))
        return torch.zeros(len(probs), dtype=torch.int64)

    monkeypatch.setattr(sampling, "sample", sample)
    monkeypatch.setattr(sampling, "uniform", lambda like, _generator: u.to(like.dtype))
    result = verify_sampled(
        torch.stack([torch.stack([target[path[:n]] for n in range(DRAFTS + 1)]) for path, _ in cases]),
        torch.tensor([path for path, _ in cases]),
        torch.stack([torch.stack([proposal[path[:n]] for n in range(DRAFTS)]) for path, _ in cases]),
        torch.full((len(cases),), limit),
    )
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for (path, _), accepted, last in zip(cases, result.num_accepted.tolist(), weights[0].tolist(), strict=True):
        assert accepted <= limit
        for token, share in enumerate(last):
            kept = (*path[:accepted], token)
            of_case = likelihood(proposal, path) / GRID**DRAFTS * share
            for rest in itertools.product(range(VOCABULARY), repeat=DRAFTS + 1 - len(kept)):
                whole = (*kept, *rest)
                found[whole] += of_case * likelihood(target, whole) / max(likelihood(target, kept), 1e-300)
    for path in itertools.product(range(VOCABULARY), repeat=DRAFTS + 1):
        assert found[path] == pytest.approx(likelihood(target, path), abs=1e-12), path


def test_drafts_of_the_target_itself_are_all_accepted() -> None:
    torch.manual_seed(0)
    probs = torch.softmax(torch.randn(64, 5, 11), -1)
    drafts = torch.stack([sampling.sample(probs[:, n]) for n in range(4)], 1)
    result = verify_sampled(probs, drafts, probs[:, :-1], torch.full((64,), 4))
    assert result.num_accepted.tolist() == [4] * 64
    assert torch.equal(result.tokens[:, :4], drafts)
    assert torch.equal(result.last_tokens, result.tokens[:, 4])


def test_a_draft_that_the_target_forbids_never_comes_out() -> None:
    target = torch.tensor([0.0, 0.25, 0.75]).expand(4096, 2, 3)
    proposals = torch.tensor([0.9, 0.1, 0.0]).expand(4096, 1, 3)
    torch.manual_seed(1)
    drafts = sampling.sample(proposals[:, 0])[:, None]
    result = verify_sampled(target, drafts, proposals, torch.ones(4096, dtype=torch.int64))
    first = result.tokens[:, 0]
    assert set(first.tolist()) == {1, 2}
    assert (first == 2).float().mean() == pytest.approx(0.75, abs=5 * (0.1875 / 4096) ** 0.5)


def greedy_by_loop(logits: Tensor, drafts: list[int], limit: int) -> list[int]:
    """Token by token, as a decoder without drafts would go on."""
    output = []
    for position, row in enumerate(logits):
        output.append(int(row.argmax()))
        if position >= limit or position >= len(drafts) or drafts[position] != output[-1]:
            return output
    raise AssertionError("a row is left for the token after the drafts")


@pytest.mark.parametrize("seed", range(5))
def test_greedy_output_is_a_decoders(seed: int) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(200, 5, 3)
    drafts = torch.where(torch.rand(200, 4) < 0.7, logits[:, :4].argmax(-1), torch.randint(3, (200, 4)))
    limits = torch.randint(5, (200,))
    result = verify_greedy(logits, drafts, limits)
    for row, (accepted, tokens) in enumerate(zip(result.num_accepted.tolist(), result.tokens.tolist(), strict=True)):
        assert tokens[: accepted + 1] == greedy_by_loop(logits[row], drafts[row].tolist(), int(limits[row]))
        assert result.last_tokens[row] == tokens[accepted]


def rule_for(temperatures: list[float], top_ks: list[int]) -> SamplingRule:
    size = len(top_ks)
    greedy = all(k == 1 for k in top_ks)
    return SamplingRule(
        torch.tensor(temperatures)[:, None], torch.tensor(top_ks), torch.ones(size), torch.zeros(size), greedy, True
    )


def test_a_greedy_request_beside_a_sampled_one_stays_greedy() -> None:
    """SGLang's greedy is a top-k of one at temperature 1."""
    torch.manual_seed(4)
    logits, draft_logits = torch.randn(40, 4, 9), torch.randn(40, 3, 9)
    draft_logits[::2] = logits[::2, :3] + 0.3 * torch.randn(20, 3, 9)  # mostly right
    limits = torch.full((40,), 3)
    mixed = rule_for([1.0] * 39 + [0.8], [1] * 39 + [1 << 30])
    proposals = distribution(draft_logits, mixed)
    tokens = torch.stack([sampling.sample(proposals[:, n]) for n in range(3)], 1)
    assert torch.equal(tokens[:39], draft_logits[:39].argmax(-1))
    found = verify(logits, Drafts(tokens, proposals), mixed, limits)
    expected = verify(logits, Drafts(tokens, None), rule_for([1.0] * 40, [1] * 40), limits)
    assert torch.equal(found.num_accepted[:39], expected.num_accepted[:39])
    assert torch.equal(found.last_tokens[:39], expected.last_tokens[:39])
    assert 0 < int(found.num_accepted[:39].sum()) < 39 * 3


@pytest.mark.parametrize("top_k", [1, 1 << 30])
def test_without_drafts_it_is_one_token(top_k: int) -> None:
    torch.manual_seed(5)
    logits = torch.randn(20_000, 1, 4) * 0 + torch.tensor([0.0, 1.0, 2.0, 0.5])
    rule = rule_for([1.0] * 20_000, [top_k] * 20_000)
    result = verify(logits, None, rule, torch.zeros(20_000, dtype=torch.int64))
    assert result.tokens.shape == (20_000, 1)
    assert not result.num_accepted.any()
    shares = torch.bincount(result.last_tokens, minlength=4) / 20_000
    expected = torch.tensor([0.0, 0.0, 1.0, 0.0]) if top_k == 1 else logits[0, 0].softmax(-1)
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.02)


def kept_in_order(probs: list[float], top_k: int, top_p: float, min_p: float) -> list[float]:
    """Top-k, normalised, then top-p, then min-p: FlashInfer's functions as SGLang calls them where there is a min-p."""
    order = sorted(range(len(probs)), key=lambda token: -probs[token])[:top_k]
    total = sum(probs[token] for token in order)
    kept: list[int] = []
    for token in order:
        if sum(probs[other] for other in kept) / total > top_p:
            break
        kept.append(token)
    kept = [token for token in kept if probs[token] >= min_p * probs[order[0]]]
    total = sum(probs[token] for token in kept)
    return [probs[token] / total if token in kept else 0.0 for token in range(len(probs))]


def test_distribution_is_what_sglang_samples_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against SGLang's own function, whose multinomial is made to hand out what it would draw from."""
    from sglang.srt.layers import sampler

    torch.manual_seed(2)
    options = list(itertools.product((0.6, 1.3), (1, 5, 1 << 30), (0.3, 0.9, 1.0), (0.0, 0.2)))
    temperatures, top_ks, top_ps, min_ps = (torch.tensor(column) for column in zip(*options, strict=True))
    logits = torch.randn(len(options), 2, 50) * 3
    rule = SamplingRule(temperatures[:, None], top_ks, top_ps, min_ps, is_greedy=False, is_filtered=True)
    found = distribution(logits, rule)
    drawn: list[Tensor] = []

    def multinomial(weights: Tensor, num_samples: int) -> Tensor:
        drawn.append(weights / weights.sum(-1, keepdim=True))
        return torch.zeros(len(weights), num_samples, dtype=torch.int64)

    monkeypatch.setattr(torch, "multinomial", multinomial)
    for token in range(2):
        probs = torch.softmax(logits[:, token] / temperatures[:, None], -1)
        order = probs.sort(dim=-1, descending=True).indices
        zeros = torch.zeros(len(options))
        sampler.top_k_top_p_min_p_sampling_from_probs_torch(probs, top_ks, top_ps, min_ps, True, None, zeros)
        expected = torch.zeros_like(probs).scatter(-1, order, drawn[-1])
        torch.testing.assert_close(found[:, token], expected, rtol=1e-5, atol=1e-7)
    one_by_one = replace(rule, renormalises=True)
    for token, row in itertools.product(range(2), range(len(options))):
        expected = kept_in_order((logits[row, token] / temperatures[row]).softmax(-1).tolist(), *options[row][1:])
        found = distribution(logits, one_by_one)[row, token]
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-7)
    plain = SamplingRule(temperatures[:, None], top_ks, top_ps, min_ps, is_greedy=False, is_filtered=False)
    torch.testing.assert_close(distribution(logits, plain), torch.softmax(logits / temperatures[:, None, None], -1))


def sampling_info(size: int, **fields: Any) -> Any:
    """SGLang's own, of greedy requests but for ``fields``."""
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

    flags = ("is_any_greedy", "need_top_p_sampling", "need_top_k_sampling", "need_min_p_sampling")
    greedy = {
        "temperatures": torch.ones(size, 1),
        "top_ks": torch.ones(size, dtype=torch.int32),
        "top_ps": torch.ones(size),
        "min_ps": torch.zeros(size),
        "is_all_greedy": True,
        "vocab_size": 9,
        "device": "cpu",
    }
    return SamplingBatchInfo(**dict.fromkeys(flags, False) | greedy | fields)


@pytest.mark.parametrize("by_flashinfer", [False, True])
@pytest.mark.parametrize("name", ["top_p", "top_k", "min_p", None])
def test_each_filter_is_asked_for(name: str | None, by_flashinfer: bool) -> None:
    info = sampling_info(2, **{f"need_{name}_sampling": True} if name else {})
    rule = SamplingRule.from_batch(info, by_flashinfer)
    assert rule.is_filtered is (name is not None)
    assert rule.renormalises is (name == "min_p" and by_flashinfer)


DRAFT: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "top-p": {"top_p": 0.8},
    "logit bias": {"logit_bias": {"7": 3.0}},
    "seed": {"sampling_seed": 5},
    "several answers": {"n": 3},
}
NO_DRAFT: dict[str, dict[str, Any]] = {
    "frequency penalty": {"frequency_penalty": 0.5},
    "presence penalty": {"presence_penalty": -0.5},
    "repetition penalty": {"repetition_penalty": 1.1},
    "minimum length": {"min_new_tokens": 3},
}


def request(**sampling: Any) -> Any:
    """SGLang's own request."""
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    return Req("rid", "text", [1, 2, 3], SamplingParams(**sampling))


@pytest.mark.parametrize("sampling", DRAFT.values(), ids=DRAFT)
def test_may_draft(sampling: dict[str, Any]) -> None:
    assert may_draft(request(**sampling))


@pytest.mark.parametrize("sampling", NO_DRAFT.values(), ids=NO_DRAFT)
def test_may_not_draft(sampling: dict[str, Any]) -> None:
    assert not may_draft(request(**sampling))


def test_a_minimum_length_ends() -> None:
    req = request(min_new_tokens=3)
    req.output_ids.extend([5, 6])
    assert not may_draft(req)
    req.output_ids.append(7)
    assert may_draft(req)


def test_a_grammar_and_a_custom_processor_may_not_draft() -> None:
    req = request()
    req.grammar = object()
    assert not may_draft(req)
    req = request()
    req.custom_logit_processor = "pickled"
    assert not may_draft(req)
