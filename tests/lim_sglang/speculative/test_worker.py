"""The worker of the lossless mode, where the whole scheduler is not needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import FINISH_LENGTH

from lim_sglang.metrics import RoundMetrics
from lim_sglang.speculative.policy import DraftPolicy
from lim_sglang.speculative.sampling import sample
from lim_sglang.speculative.worker import LimSpecWorker

from .test_sampling import request


def test_ranks_draw_alike_by_the_seed_that_sglang_gave_all_of_them() -> None:
    """A launch option's own is another on each node, where none was given."""
    probabilities = torch.rand(64, 50, generator=torch.Generator().manual_seed(0)).softmax(-1)
    first, second, other = (sample(probabilities, worker(*seeds).generator) for seeds in ((1, 7), (2, 7), (1, 8)))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_step_after_a_requests_end_counts_for_nobody() -> None:
    """The overlap scheduler, on a GPU, runs one before it knows of the end, and drops what it gave."""
    running, ended, retracted = request(), request(), request()
    ended.finished_reason = FINISH_LENGTH(length=5)
    retracted.is_retracted = True
    ours = worker(1, 7)
    ours.metrics, ours.policy = RoundMetrics(), DraftPolicy(most=4, budget=64)
    ours._unresolved.append((4, [ended, running, None, retracted]))
    ours.on_verify_complete_cpu([4, 3, 0, 2])
    found = ours.metrics.report()
    assert [found[name] for name in ("request_rounds", "drafted_tokens", "accepted_tokens")] == [1, 4, 3]
    expected = DraftPolicy(most=4, budget=64)
    expected.observe([3], 4)
    assert ours.policy.acceptance.rate == expected.acceptance.rate


def worker(of_the_node: int, of_all: int) -> LimSpecWorker:
    runner = SimpleNamespace(device="cpu", shared_read_done_event=None)
    args: Any = SimpleNamespace(speculative_num_draft_tokens=5, sampling_backend="pytorch", random_seed=of_the_node)
    return LimSpecWorker(args, SimpleNamespace(model_runner=runner, random_seed=of_all))
