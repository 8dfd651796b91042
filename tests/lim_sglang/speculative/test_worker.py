"""The worker of the lossless mode, where the whole scheduler is not needed."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.layers.sampler import Sampler
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, ScheduleBatch
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.model_executor.model_runner import ModelRunner
from torch import Tensor
from torch.nn.functional import one_hot

from lim_sglang.metrics import RoundMetrics
from lim_sglang.speculative.policy import DraftPolicy
from lim_sglang.speculative.sampling import Drafts, sample
from lim_sglang.speculative.spec_input import RoundInput
from lim_sglang.speculative.worker import LimSpecWorker

from .test_forward import schedule_batch
from .test_sampling import request, sampling_info


def test_ranks_draw_alike_by_the_seed_that_sglang_gave_all_of_them() -> None:
    """A launch option's own is another on each node, where none was given."""
    probabilities = torch.rand(64, 50, generator=torch.Generator().manual_seed(0)).softmax(-1)
    first, second, other = (
        sample(probabilities, worker(Target(of_all), of_the_node).generator)
        for of_the_node, of_all in ((1, 7), (2, 7), (1, 8))
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_step_after_a_requests_end_counts_for_nobody() -> None:
    """The overlap scheduler, on a GPU, runs one before it knows of the end, and drops what it gave."""
    running, ended, retracted = request(), request(), request()
    ended.finished_reason = FINISH_LENGTH(length=5)
    retracted.is_retracted = True
    ours = worker(Target())
    ours.metrics, ours.policy = RoundMetrics(), DraftPolicy(most=4, budget=64)
    ours._unresolved.append((4, [ended, running, None, retracted]))
    ours.on_verify_complete_cpu([4, 3, 0, 2])
    found = ours.metrics.report()
    assert [found[name] for name in ("request_rounds", "drafted_tokens", "accepted_tokens")] == [1, 4, 3]
    expected = DraftPolicy(most=4, budget=64)
    expected.observe([3], 4)
    assert ours.policy.acceptance.rate == expected.acceptance.rate


class Target:
    """Stands for ``TpModelWorker``: answers every verification with these logits, and keeps what it was asked."""

    def __init__(self, random_seed: int = 7, logits: Tensor | None = None) -> None:
        self.random_seed, self.logits, self.steps = random_seed, logits, list[Any]()
        self.model_runner = SimpleNamespace(
            device="cpu",
            shared_read_done_event=None,
            model_config=SimpleNamespace(context_len=64),
            _preprocess_logits=partial(ModelRunner._preprocess_logits, None),
            sampler=SimpleNamespace(_preprocess_logits=partial(Sampler._preprocess_logits, None)),
        )

    def forward_batch_generation(self, step: ScheduleBatch, is_verify: bool) -> GenerationBatchResult:
        assert is_verify
        assert self.logits is not None
        self.steps.append(step)
        return GenerationBatchResult(LogitsProcessorOutput(self.logits.flatten(0, 1).clone()))


def test_rounds() -> None:
    """Of three drafts, a request accepts all, one that may not draft none, and one those before its first wrong one."""
    answers = torch.tensor([[5, 6, 7, 8, 0], [5, 6, 7, 8, 0], [5, 4, 7, 8, 0]])
    bias = 50 * torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    target = Target(logits=one_hot(answers, 9) - bias[:, None])
    ours, runner = worker(target), target.model_runner
    ours.policy, ours.metrics = DraftPolicy(most=3, budget=64), RoundMetrics()

    def draft(*_: Any) -> Drafts:
        runner.shared_read_done_event = "the last draft's"
        return Drafts(torch.tensor([[5, 6, 7]] * 3), None)

    ours.drafter = SimpleNamespace(draft=draft)  # type: ignore[assignment]
    requests = [request(), request(presence_penalty=0.5), request()]
    batch = schedule_batch([7, 12, 20], sampling_info(3, logit_bias=bias), requests)
    batch.spec_info = RoundInput(5, last_tokens=torch.tensor([1, 2, 3]))
    for lengths, last_tokens in (([7, 12, 20], [1, 2, 3]), ([11, 13, 22], [8, 5, 4])):
        assert batch.seq_lens.tolist() == lengths
        published: list[Tensor] = []
        result = ours.forward_batch_generation(batch, published.append)
        step = target.steps[-1]
        assert step.input_ids.view(3, 5).tolist() == [[last, 5, 6, 7, last] for last in last_tokens]
        positions = [[length + token for token in range(5)] for length in lengths]
        assert step.spec_info.positions.view(3, 5).tolist() == positions
        assert (step.out_cache_loc.view(3, 5) - 100 * torch.arange(1, 4)[:, None]).tolist() == positions
        assert runner.shared_read_done_event is None, "the verification reads the table, too"
        assert result.accept_lens.tolist() == [4, 1, 2]
        assert result.next_token_ids.view(3, 4)[0].tolist() == [5, 6, 7, 8]
        assert result.next_draft_input.bonus_tokens.tolist() == [8, 5, 4]
        batch.seq_lens = batch.seq_lens_cpu = published[0]
        batch.spec_info = result.next_draft_input


def test_nothing_is_drafted_where_two_rounds_could_pass_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host may not know of the last one yet."""
    ours = worker(Target())
    ours.policy = DraftPolicy(most=4, budget=64)
    monkeypatch.setattr(ours, "_round", lambda *_: "round")
    monkeypatch.setattr(ours, "_plain_step", lambda *_: "plain step")
    for longest, expected in ((54, "round"), (55, "plain step")):
        batch = schedule_batch([3, longest], sampling_info(2), [request(), request()])
        assert ours.forward_batch_generation(batch) == expected


@pytest.fixture(autouse=True)
def drafts_with_the_models_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is launched here whose configuration would say which."""
    monkeypatch.setattr("lim_sglang.speculative.worker.weights_of_launch", lambda *_: None)


def worker(target: Any, seed_of_the_node: int = 1) -> LimSpecWorker:
    args: Any = SimpleNamespace(
        speculative_num_draft_tokens=5, sampling_backend="pytorch", random_seed=seed_of_the_node
    )
    return LimSpecWorker(args, target)
