"""The next token of a real model over many draws: dense attention's distribution, though another one drafts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.fidelity.texts import TEXTS, encode
from lim_sglang.speculative.sampling import SamplingRule, distribution, sample, verify_sampled
from lim_sglang.tools.servers.embedded_model import ensure_model

DRAWS, CHUNK = 20_000, 2_000
PREFIX, WINDOW, LIKELIEST = 400, 24, 4096
CHOSEN = ("licences", "source code")
RULES = {"temperature 0.6": (0.6, 1.0), "temperature 1": (1.0, 1.0), "top-p 0.9": (1.0, 0.9)}


@pytest.fixture(scope="module")
def logits() -> dict[str, tuple[Tensor, Tensor]]:
    """By text, where the next token is least certain: the likeliest tokens' logits, and those of a draft that sees the
    last tokens only."""
    folder = ensure_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = {}
    for name in CHOSEN:
        prefix = torch.tensor([encode(tokenizer, TEXTS[name]()[:8000])[:PREFIX]])
        with torch.inference_mode():
            rows = model(prefix).logits[0]
            most_open = PREFIX // 2 + int(rows[PREFIX // 2 :].softmax(-1).amax(-1).argmin())
            draft = model(prefix[:, most_open + 1 - WINDOW : most_open + 1]).logits[0, -1]
        kept = rows[most_open].topk(LIKELIEST).indices
        found[name] = rows[most_open, kept], draft[kept]
    return found


def rule_of(name: str) -> SamplingRule:
    temperature, top_p = RULES[name]
    one = torch.ones(1)
    return SamplingRule(one[:, None] * temperature, one.int() << 30, one * top_p, one * 0, False, top_p < 1)


def chi_square(counts: Tensor, probs: Tensor) -> float:
    """The probability of a deviation as large; tokens that are expected fewer than five times count as one."""
    expected = probs.double() * counts.sum()
    rare = expected < 5
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]]).double()
    kept = expected > 0
    statistic = ((observed - expected)[kept] ** 2 / expected[kept]).sum()
    freedom = torch.tensor((int(kept.sum()) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


def drawn(target: Tensor, proposal: Tensor, *, verified: bool) -> Tensor:
    """[V] how often each token came first."""
    counts = torch.zeros(len(target), dtype=torch.int64)
    ones = torch.ones(CHUNK, dtype=torch.int64)
    for _ in range(DRAWS // CHUNK):
        drafts = sample(proposal.expand(CHUNK, -1))[:, None]
        if verified:
            drafts = verify_sampled(target.expand(CHUNK, 2, -1), drafts, proposal.expand(CHUNK, 1, -1), ones).tokens
        counts += torch.bincount(drafts[:, 0], minlength=len(target))
    return counts


@pytest.mark.parametrize("name", RULES)
def test_the_next_token_has_dense_attentions_distribution(
    logits: dict[str, tuple[Tensor, Tensor]], name: str, record_property: Callable[[str, object], None]
) -> None:
    rule = rule_of(name)
    for seed, (text, (dense, draft)) in enumerate(logits.items()):
        torch.manual_seed(seed)
        target, proposal = (distribution(row[None, None], rule)[0, 0] for row in (dense, draft))
        p = chi_square(drawn(target, proposal, verified=True), target)
        record_property(f"p of {text}, {name}", p)
        print(f"{text}, {name}: p = {p:.3f}")
        assert p > 1e-4, text
        assert chi_square(drawn(target, proposal, verified=False), target) < 1e-12, "drafts themselves are not dense's"
