"""Verification, several query tokens per request: the reference against a plain softmax, the kernel against it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lim_kernels.attend.config import HeadShape, verify_config
from lim_kernels.attend.launch import Requests, ScoreSink, attend
from lim_kernels.attend.reference import decode_attention, verify_attention

from .cases import DEVICE, SMALL, Case, capture

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn


class VerifyCase(Case):
    """Requests whose last ``q_len`` tokens are verified."""

    def paged(self) -> tuple[Tensor, Tensor, Tensor]:
        """The requests as the reference takes them: a table in another order, its rows, prefix lengths."""
        rows = torch.arange(len(self.lengths)).flip(0)
        table = torch.full((len(rows), max(self.lengths)), 1 << 30, dtype=torch.int32, device=DEVICE)
        for request, row in enumerate(rows.tolist()):
            table[row, : self.lengths[request]] = self.slots(request)
        return table, rows, torch.tensor(self.lengths) - self.q_len

    def expected(self) -> Tensor:
        q = self.q.unflatten(0, (-1, self.q_len))
        out = verify_attention(q, *self.caches(), *self.paged(), self.cache.sm_scale, self.soft_cap)
        return out.flatten(0, 1) * self.value_scale


def verify(prefixes: list[int], q_len: int, heads: int = 6, kv_heads: int = 2, **options: object) -> VerifyCase:
    return VerifyCase([prefix + q_len for prefix in prefixes], heads, kv_heads, q_len=q_len, **options)  # type: ignore[arg-type]


def plain(case: VerifyCase) -> Tensor:
    """[B * T, H, D] float64: every token and head by itself, from its own list of slots."""
    keys, values = (part.double() for part in case.caches())
    group = case.heads // case.kv_heads
    out = torch.empty(case.q.shape, dtype=torch.float64)
    for row in range(len(case.q)):
        request, token = divmod(row, case.q_len)
        slots = case.slots(request)[: case.lengths[request] - case.q_len + token + 1]
        for head in range(case.heads):
            logits = keys[slots, head // group] @ case.q[row, head].double() * case.cache.sm_scale
            if case.soft_cap:
                logits = case.soft_cap * (logits / case.soft_cap).tanh()
            out[row, head] = logits.softmax(0) @ values[slots, head // group]
    return out * case.value_scale


@pytest.mark.parametrize("q_len", [1, 2, 5, 13])
def test_the_reference_is_a_plain_softmax(q_len: int) -> None:
    """The reference is float32, so up to its rounding."""
    case = verify([0, 1, 9, 40], q_len)
    torch.testing.assert_close(case.expected().double().cpu(), plain(case), rtol=0, atol=2e-5)


@pytest.mark.parametrize("group", [1, 3, 8])
def test_the_references_groups(group: int) -> None:
    for options in ({}, {"soft_cap": 2.0}, {"dtype": BF16}, {"k_dtype": FP8, "value_scale": 0.5}):
        case = verify([0, 30], 3, 2 * group, **options)
        torch.testing.assert_close(case.expected().double().cpu(), plain(case), rtol=0, atol=5e-6)


def test_the_references_values_have_a_size_of_their_own() -> None:
    """Sliced values give a slice of the output."""
    case = verify([0, 30], 3)
    q, paged = case.q.unflatten(0, (-1, 3)), case.paged()
    narrow = verify_attention(q, case.cache.keys, case.cache.values[..., :24], *paged, case.cache.sm_scale)
    assert narrow.shape == (2, 3, 6, 24)
    torch.testing.assert_close(narrow.flatten(0, 1), case.expected()[..., :24], rtol=0, atol=2e-6)


def test_one_token_is_a_decode_step() -> None:
    case = verify([0, 1, 9, 40], 1)
    decoded = decode_attention(case.q, case.cache.keys, case.cache.values, *case.requests[:2], case.cache.sm_scale)
    torch.testing.assert_close(case.expected(), decoded, rtol=0, atol=0)


def test_the_reference_needs_no_triton() -> None:
    """A CPU host may have none."""
    code = "import sys; sys.modules['triton'] = None; import lim_kernels.attend.reference"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


CASES = {
    "ragged": verify([0, 11, 12, 63, 130], 5),
    "one split": verify([40, 3], 5, config=replace(SMALL.attend, min_splits=1, max_splits=1)),
    "most tokens": verify([30], 16),
    "blocks of tokens": verify([18], 13, 8, 1, head_dim=128),
    "a block for every token": verify([18], 3, 64, 1, head_dim=128),
    "head dim 96": verify([63, 4], 5, head_dim=96),
    "soft cap": verify([63, 4], 5, soft_cap=2.0),
    "fp8": verify([63, 4], 5, k_dtype=FP8, value_scale=0.5),
    "fp8 under fp16": verify([0, 63], 7, dtype=torch.float16, k_dtype=FP8),
    **{f"{q_len} tokens": verify([0, 3], q_len) for q_len in (1, 9)},
    **{f"the last split holds {tail} of 6 tokens": verify([58 + tail], 6) for tail in (1, 5, 6)},  # it begins at 64
    **{f"groups of {group}": verify([11], 3, 2 * group) for group in (1, 7, 8)},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_verification_is_the_references(case: VerifyCase) -> None:
    case.check(case.run(), case.expected())


def test_cases_with_several_blocks() -> None:
    """The names above say what they do."""
    two, three = HeadShape(128, 8, BF16, BF16, 13), HeadShape(128, 64, BF16, BF16, 3)
    assert [(heads.q_blocks, heads.q_tile) for heads in (two, three)] == [(2, 7), (3, 1)]


def test_tokens_see_nothing_of_later_ones() -> None:
    """Another last token changes its own output and no bit of the others'."""
    case = verify([0, 20], 5)
    before = case.run()
    last = case.requests.kv_indices[case.requests.kv_indptr[1:].long() - 1].long()
    case.cache.keys[last], case.cache.values[last] = 100.0, -50.0
    changed = (case.run() != before).flatten(1).any(1).unflatten(0, (-1, 5))
    assert changed.tolist() == [[False] * 4 + [True]] * 2


def test_a_request_without_slots_gets_zeros() -> None:
    """As decode does it; the requests beside it are right."""
    case = verify([4, 30, 2], 3)
    expected = case.expected()
    begin, end = case.requests.kv_indptr[1:3].tolist()
    case.requests.kv_indptr[2:] -= end - begin
    kept = torch.cat([case.requests.kv_indices[:begin], case.requests.kv_indices[end:]])
    out = case.run(case.requests._replace(kv_indices=kept))
    expected[3:6] = 0
    case.check(out, expected)


def test_some_requests_of_a_batch() -> None:
    """Requests 1 and 2 only: nothing is written for the others."""
    case = verify([20, 30, 40, 50], 3)
    out = case.run(case.requests._replace(first=1, size=2))
    case.check(out[3:9], case.expected()[3:9])
    assert bool(out[[0, 1, 2, 9, 10, 11]].isnan().all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q_len": 0}, "q of 6 rows for requests 0 to 1 with 0 query tokens each"),
        ({"q_len": 4}, "q of 6 rows for requests 0 to 1 with 4 query tokens each: expected 8 rows at least"),
        ({"first": 1}, "q of 6 rows for requests 1 to 2 with 3 query tokens each: expected 9 rows at least"),
    ],
    ids=str,
)
def test_rows_that_are_not_there_get_one_line(change: dict[str, int], message: str) -> None:
    case = verify([20, 50], 3)
    with pytest.raises(ValueError, match=message) as caught:
        case.run(case.requests._replace(**change))
    assert "\n" not in str(caught.value)


def test_a_workspace_is_for_a_number_of_tokens() -> None:
    case = verify([20, 50], 3)
    workspace = verify([20, 50], 2).workspace()
    needed = 2 * SMALL.attend.kv_splits(2, 2) * 3
    with pytest.raises(ValueError, match=rf"expected \[{needed}, 6, 64\], with splits at least that"):
        attend(case.q, case.cache, case.requests, torch.empty_like(case.q), workspace, SMALL.attend)


def test_a_layer_that_verifies_does_not_select() -> None:
    case = verify([20, 50], 3)
    unused = torch.zeros(1, 1, 16, dtype=torch.int32, device=DEVICE)
    sink = ScoreSink(unused, unused, unused[0], 1, 0, 0)
    with pytest.raises(ValueError, match="scores of 3 query tokens per request: expected 1 where a layer selects"):
        attend(case.q, case.cache, case.requests, torch.empty_like(case.q), case.workspace(), SMALL.attend, sink)


def serving(prefixes: list[int], q_len: int, k_dtype: torch.dtype | None = None) -> VerifyCase:
    config = verify_config(HeadShape(128, 4, BF16, k_dtype or BF16, q_len))
    return verify(prefixes, q_len, 32, 8, head_dim=128, k_dtype=k_dtype, config=config)


@pytest.mark.gpu
@pytest.mark.parametrize("k_dtype", [None, FP8], ids=str)
@pytest.mark.parametrize("q_len", [2, 5, 7, 9, 13])
def test_serving_shapes(q_len: int, k_dtype: torch.dtype | None) -> None:
    case = serving([32_768, 2048, 0, 4097], q_len, k_dtype)
    case.check(case.run(), case.expected())


@pytest.mark.gpu
@pytest.mark.parametrize("q_len", [5, 13])
def test_a_graph_serves_other_lengths(q_len: int) -> None:
    """Captured with short requests, replayed with long ones in the same buffers."""
    case, later = serving([9, 0, 40], q_len), serving([5000, 3, 999], q_len)
    indptr, indices = (torch.zeros_like(tensor) for tensor in later.requests[:2])
    indptr.copy_(case.requests.kv_indptr)
    indices[: sum(case.lengths)] = case.requests.kv_indices
    q, out, workspace = case.q.clone(), torch.empty_like(case.q), case.workspace()
    requests = Requests(indptr, indices, 0, 3, q_len)

    graph = capture(lambda: attend(q, later.cache, requests, out, workspace, case.config))
    q.copy_(later.q)
    for tensor, new in zip(requests[:2], later.requests[:2], strict=True):
        tensor.copy_(new)
    out.fill_(float("nan"))
    graph.replay()
    later.check(out, later.expected())
