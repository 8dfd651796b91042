"""The token set against a literal list merge, and the head scores against a float64 loop."""

import math
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lim_kernels.select.budget import MAX_BUDGET, BudgetParts, split_budget
from lim_kernels.select.reference import NOT_A_CANDIDATE, head_scores, select_token_set, unified_ranks

EXTREMES = [1e38, -1e38, 3.4e38, math.inf, -math.inf, 0.0, -0.0, 1e-45, -1e-45, 1e-40, 1.0, -1.0]
SCORE_KINDS = ["random", "tied", "two-values", "constant", "all -inf", "extreme", "one head"]


def merged_lists(head_lists: list[list[int]], count: int) -> list[int]:
    """Read the heads' lists rank by rank and keep the first ``count`` distinct tokens."""
    kept: list[int] = []
    for rank in range(len(head_lists[0])):
        for ranking in head_lists:
            if len(kept) < count and ranking[rank] not in kept:
                kept.append(ranking[rank])
    return kept


def rankings(scores: list[list[float]], first: int, end: int) -> list[list[int]]:
    """Every head's candidates by descending score, the lower position first among equals."""
    return [sorted(range(first, end), key=lambda t: (-head[t], t)) for head in scores]


def literal_set(scores: list[list[float]], n: int, budget: int, ratio: float, sink_tokens: int) -> list[int]:
    """The set of one request, word for word as the algorithm reads."""
    if n <= budget:
        return list(range(n))
    m = int(budget * (1 - ratio))
    s = sink_tokens if budget - m >= sink_tokens else 0
    w = budget - m - s
    chosen = merged_lists(rankings(scores, s, n - w), m) if m else []
    return sorted([*range(s), *chosen, *range(n - w, n)])


def make_scores(kind: str, heads: int, width: int, generator: torch.Generator) -> torch.Tensor:
    scores = torch.randn(heads, width, generator=generator)
    if kind == "tied":
        return (scores * 2).round()
    if kind == "two-values":
        return (scores > 0).float()
    if kind == "constant":
        return torch.full_like(scores, 0.5)
    if kind == "all -inf":
        return torch.full_like(scores, -math.inf)
    if kind == "extreme":
        return torch.tensor(EXTREMES)[torch.randint(len(EXTREMES), (heads, width), generator=generator)]
    if kind == "one head":
        return scores[:1].expand(heads, -1).clone()
    return scores


def check_batch(scores: torch.Tensor, lengths: Sequence[int], budget: int, ratio: float, sink_tokens: int) -> None:
    """Compare a ragged batch with the list merge, request by request, exactly."""
    result = select_token_set(scores, torch.tensor(lengths), split_budget(budget, ratio, sink_tokens))
    assert result.positions.shape == (len(lengths), budget)
    assert result.positions.dtype == result.lengths.dtype == torch.int64
    for row, n in enumerate(lengths):
        expected = literal_set(scores[row].tolist(), n, budget, ratio, sink_tokens)
        assert len(expected) == min(n, budget)
        assert result.lengths[row] == len(expected)
        assert result.positions[row].tolist() == expected + [-1] * (budget - len(expected))


def garbage_beyond(scores: torch.Tensor, lengths: Sequence[int], garbage: float) -> torch.Tensor:
    for row, n in enumerate(lengths):
        scores[row, :, n:] = garbage
    return scores


@pytest.mark.parametrize("kind", SCORE_KINDS)
@pytest.mark.parametrize("heads", [1, 2, 3, 9, 40], ids=lambda h: f"H={h}")
def test_ragged_batch_equals_list_merge(kind: str, heads: int) -> None:
    generator = torch.Generator().manual_seed(heads)
    lengths = [111, 1, 31, 32, 33, 63, 110, 34]
    scores = torch.stack([make_scores(kind, heads, 111, generator) for _ in lengths])
    check_batch(garbage_beyond(scores, lengths, math.nan), lengths, budget=32, ratio=0.25, sink_tokens=4)


def test_worked_example() -> None:
    """K = 4, r = 0.5: tokens 0 (sink) and 7 (window), and rank 0 of both heads: 2 and 5."""
    scores = torch.zeros(1, 2, 8)
    scores[0, 0, [0, 7, 2, 3]] = torch.tensor([9.0, 9.0, 3.0, 2.0])
    scores[0, 1, [0, 7, 5, 6]] = torch.tensor([9.0, 9.0, 3.0, 2.0])
    result = select_token_set(scores, torch.tensor([8]), split_budget(4, 0.5, 1))
    assert result.positions.tolist() == [[0, 2, 5, 7]]


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_random_problems_equal_list_merge(data: st.DataObject) -> None:
    heads = data.draw(st.integers(1, 40), "heads")
    budget = data.draw(st.integers(1, 24), "budget")
    ratio = data.draw(st.sampled_from([0.0, 1.0, 0.25, 0.5]) | st.floats(0, 1), "ratio")
    sink_tokens = data.draw(st.integers(0, 8), "sinks")
    near = st.integers(max(0, budget - 1), budget + 1)
    lengths = data.draw(st.lists(near | st.integers(0, 64), min_size=1, max_size=4), "lengths")
    kind = data.draw(st.sampled_from(SCORE_KINDS), "kind")
    garbage = data.draw(st.sampled_from([math.nan, math.inf, -math.inf, 0.0]), "garbage")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999), "seed"))
    width = max(lengths) + data.draw(st.integers(0, 5), "padding")
    scores = torch.stack([make_scores(kind, heads, width, generator) for _ in lengths])
    check_batch(garbage_beyond(scores, lengths, garbage), lengths, budget, ratio, sink_tokens)


def test_non_contiguous_scores_and_untouched_input() -> None:
    storage = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(1))
    before = storage.clone()
    check_batch(storage.permute(2, 1, 0), [50, 40], budget=10, ratio=0.25, sink_tokens=1)
    assert torch.equal(storage, before)


def test_empty_batch() -> None:
    parts = split_budget(8, 0.25, 1)
    none = torch.zeros(0, dtype=torch.int64)
    assert select_token_set(torch.zeros(0, 2, 16), none, parts).positions.shape == (0, 8)
    assert unified_ranks(torch.zeros(0, 2, 16), none, parts).shape == (0, 16)


@pytest.mark.parametrize("heads", [1, 2, 9], ids=lambda h: f"H={h}")
@pytest.mark.parametrize("kind", ["random", "tied", "extreme"])
def test_unified_ranks_are_the_least_place_in_any_list(heads: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(7)
    lengths = [40, 12, 3, 0]  # above the budget, at it, without candidates, empty
    parts = split_budget(12, 0.5, 2)
    scores = torch.stack([make_scores(kind, heads, 44, generator) for _ in lengths])
    found = unified_ranks(garbage_beyond(scores, lengths, math.nan), torch.tensor(lengths), parts)
    for row, n in enumerate(lengths):
        expected = [NOT_A_CANDIDATE] * 44
        ranked = rankings(scores[row].tolist(), parts.sinks, n - parts.recent)
        for h, ranking in enumerate(ranked):
            for rank, token in enumerate(ranking):
                expected[token] = min(expected[token], rank * heads + h)
        assert found[row].tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (9, 3), (8, 8), (4, 1)], ids=lambda v: str(v))
@pytest.mark.parametrize("n", [0, 1, 63], ids=lambda n: f"n={n}")
def test_head_scores_equal_a_float64_loop(heads: int, kv_heads: int, n: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(heads)
    q = torch.randn(heads, 64, generator=generator).to(dtype)
    keys = torch.randn(n, kv_heads, 64, generator=generator).to(dtype)
    result = head_scores(q, keys)
    assert result.dtype == torch.float32
    assert result.shape == (heads, n)
    for h in range(heads):
        expected = keys[:, h // (heads // kv_heads)].double() @ q[h].double()
        bound = keys[:, h // (heads // kv_heads)].double().abs() @ q[h].double().abs()
        assert ((result[h].double() - expected).abs() <= 64 * 2**-24 * bound).all()


@pytest.mark.parametrize(
    ("budget", "ratio", "sinks", "expected"),
    [
        (2048, 0.25, 4, (1536, 4, 508)),
        (2048, 0.0, 4, (2048, 0, 0)),
        (2048, 1.0, 4, (0, 4, 2044)),
        (1, 0.25, 0, (0, 0, 1)),
        (3, 1.0, 4, (0, 0, 3)),
        (16, 0.25, 4, (12, 4, 0)),
        (16, 0.25, 5, (12, 0, 4)),
        (10, 0.3, 1, (7, 1, 2)),
        (100, 0.1, 0, (90, 0, 10)),
    ],
    ids=str,
)
def test_split_budget(budget: int, ratio: float, sinks: int, expected: tuple[int, int, int]) -> None:
    parts = split_budget(budget, ratio, sinks)
    assert (parts.selected, parts.sinks, parts.recent) == expected
    assert parts.budget == budget


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0, 0.25, 4), "budget = 0: expected an integer from 1"),
        ((True, 0.25, 4), "budget = True"),
        ((8.0, 0.25, 4), "budget = 8.0"),
        ((MAX_BUDGET + 1, 0.25, 4), f"to {MAX_BUDGET}"),
        ((8, -0.1, 4), "recency_ratio = -0.1: expected a number from 0 to 1"),
        ((8, 1.1, 4), "recency_ratio = 1.1"),
        ((8, math.nan, 4), "recency_ratio = nan"),
        ((8, "0.5", 4), "recency_ratio = '0.5'"),
        ((8, 0.25, -1), "sink_tokens = -1: expected an integer from 0"),
        ((8, 0.25, 1.0), "sink_tokens = 1.0"),
    ],
    ids=lambda v: str(v) if isinstance(v, tuple) else "",
)
def test_split_budget_rejects(arguments: tuple, named: str) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        split_budget(*arguments)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("parts", [(8, 8, 1, 0), (8, 6, 3, -1), (0, 0, 0, 0)], ids=str)
def test_parts_that_do_not_add_up_are_rejected(parts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        BudgetParts(*parts)


@pytest.mark.parametrize("wrong", [17, -1])
def test_lengths_beyond_the_scores_are_rejected(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"seq_lens with {wrong}: expected 0 to 16"):
        select_token_set(torch.zeros(2, 3, 16), torch.tensor([4, wrong]), split_budget(8, 0.25, 1))


def test_budget_needs_no_torch() -> None:
    code = "import sys, lim_kernels.select.budget as b; b.split_budget(8, .25, 1); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
