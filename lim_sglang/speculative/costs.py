"""What steps cost on this machine: measured once at start, on made-up requests in the empty cache."""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.sampling.sampling_params import SamplingParams
from torch import Tensor

from lim_sglang.host import ranks
from lim_sglang.metrics import DecodeMetrics
from lim_sglang.speculative.forward import StepKind, decode_step, run_step, slots_ahead, verify_step

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner

logger = logging.getLogger(__name__)

REPEATS, IN_A_ROW = 3, 4  # steps follow each other without a wait, as they do in a server
ROUND_MS = 1.5  # from a round's outcome to the next round's first kernel: SGLang's scheduler; 1.0 to 1.9 on an H200


@dataclass(frozen=True)
class StepTime:
    """Milliseconds of one kind of step.

    Attributes:
        batches: ascending batch sizes that were measured.
        base_ms: by batch size, what a step takes beside what it reads of the cache.
        token_ms: by batch size, what every cached token of a request of the batch adds.
    """

    batches: tuple[int, ...]
    base_ms: tuple[float, ...]
    token_ms: tuple[float, ...]

    def at(self, batch: int, tokens: int) -> float:
        """For ``batch`` requests that hold ``tokens`` in total; between measured sizes as on a line."""
        right = min(bisect_left(self.batches, batch), len(self.batches) - 1)
        left = max(0, right - 1) if batch < self.batches[right] else right
        width = self.batches[right] - self.batches[left]
        share = max(0.0, (batch - self.batches[left]) / width) if width else 0.0
        base, token = (
            values[left] + share * (values[right] - values[left]) for values in (self.base_ms, self.token_ms)
        )
        return base + token * tokens


@dataclass(frozen=True)
class Costs:
    """What a round and a plain step take.

    Attributes:
        dense: a plain step, without drafts.
        draft: one draft of every request.
        verify: the step that verifies all drafts.
        round_ms: what a round adds to its steps: the scheduler waits for its outcome.
    """

    dense: StepTime
    draft: StepTime
    verify: StepTime
    round_ms: float = 0.0


def measure_costs(plain: StepKind, drafting: StepKind, width: int) -> Costs:
    """Time steps of every kind at several batch sizes and two lengths each; all ranks return the first one's times.

    Args:
        plain, drafting: the plain steps and the drafts' steps.
        width: tokens of a verification.
    """
    began, runner = time.perf_counter(), plain.runner
    kinds: dict[str, Callable[[Trial], None]] = {
        "dense": lambda trial: trial.decode(plain),
        "draft": lambda trial: trial.decode(drafting),
        "verify": Trial.verify,
    }
    batches = batch_sizes(len(runner.req_to_token_pool.req_to_token) - 1, runner.max_total_num_tokens)
    times: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    lengths = [lengths_of(runner, batch, width) for batch in batches]
    with fill_cache(runner, drafting.attention):
        for batch, pair in zip(batches, lengths, strict=True):
            trials = [Trial(runner, batch, length, width) for length in pair]
            found = [{kind: trial.milliseconds(run) for kind, run in kinds.items()} for trial in trials]
            for kind in kinds:
                times[kind].append([of_length[kind] for of_length in found])
    step_times = {kind: fit_lines(batches, lengths, of_kind) for kind, of_kind in times.items()}
    logger.info("lim: costs of steps measured in %.1f s: %s", time.perf_counter() - began, step_times)
    costs: Costs = ranks.share_from_first(Costs(**step_times, round_ms=ROUND_MS))
    return costs


def run_one_draft(drafting: StepKind) -> None:
    """One step of the drafts' kind, of one made-up request in the empty cache."""
    runner = drafting.runner
    with fill_cache(runner, drafting.attention):
        Trial(runner, 1, 2, 1).decode(drafting)


def batch_sizes(most: int, capacity: int) -> list[int]:
    """Powers of two up to the most requests that may run, and that number."""
    most = max(1, min(most, capacity // 64))
    sizes = [1]
    while 2 * sizes[-1] < most:
        sizes.append(2 * sizes[-1])
    return sizes if sizes[-1] == most else [*sizes, most]


def lengths_of(runner: ModelRunner, batch: int, width: int) -> tuple[int, int]:
    """Half and all of what ``batch`` requests can hold, in tokens."""
    longest = min(runner.model_config.context_len, runner.max_total_num_tokens // batch) - 2 * width
    return max(1, longest // 2), max(2, longest)


def fit_lines(batches: Sequence[int], lengths: Sequence[tuple[int, int]], times: Sequence[Sequence[float]]) -> StepTime:
    """By batch size, the line through the milliseconds at two lengths."""
    slopes = [
        max(0.0, (long_ms - short_ms) / (batch * (long - short)))
        for batch, (short, long), (short_ms, long_ms) in zip(batches, lengths, times, strict=True)
    ]
    bases = [
        max(0.0, long_ms - slope * batch * long)
        for slope, batch, (_, long), (_, long_ms) in zip(slopes, batches, lengths, times, strict=True)
    ]
    return StepTime(tuple(batches), tuple(bases), tuple(slopes))


@contextmanager
def fill_cache(runner: ModelRunner, attention: Any) -> Iterator[None]:
    """A block with a table of slots as long requests have it, keys that rank, and counters that nobody reads.

    Before the first request only: afterwards the table and the keys are all zeros again, which is how SGLang makes
    them. Within the block zeros would tie for every set.
    """
    table, pool, kept = runner.req_to_token_pool.req_to_token, runner.token_to_kv_pool, attention.metrics
    assert not table.any(), "a request holds slots"
    attention.metrics = DecodeMetrics(kept.config, kept.plan)
    slots = torch.arange(table.numel(), dtype=table.dtype, device=table.device) % runner.max_total_num_tokens
    table.copy_(slots.view_as(table))
    keys = [pool.get_key_buffer(layer) for layer in attention.plan.select_layers]
    noise = torch.randn(4096, *keys[0].shape[1:], device=table.device).to(keys[0].dtype) if keys else None
    for buffer in keys:
        for part in buffer.split(4096):
            part.copy_(noise[: len(part)])  # type: ignore[index]
    try:
        yield
    finally:
        table.zero_()
        for buffer in keys:
            buffer.zero_()
        attention.metrics = kept


@dataclass(frozen=True)
class Trial:
    """A batch of made-up requests of one length."""

    runner: ModelRunner
    batch: int
    length: int
    width: int

    def milliseconds(self, run: Callable[[Trial], None]) -> float:
        """The time of one step, host and device together: the median over repeated rows of steps."""
        times, device = [], torch.get_device_module(self.runner.device)
        for _ in range(REPEATS + 1):
            device.synchronize()
            began = time.perf_counter()
            for _ in range(IN_A_ROW):
                run(self)
            device.synchronize()
            times.append((time.perf_counter() - began) * 1e3 / IN_A_ROW)
        return median(times[1:])

    def decode(self, steps: StepKind) -> None:
        step = decode_step(self._schedule, self._zeros(self.batch), self._zeros(self.batch))
        with steps.swap_in():
            run_step(self.runner, step)

    def verify(self) -> None:
        batch = self._schedule
        tokens = self._zeros(self.batch * self.width).view(self.batch, self.width)
        run_step(self.runner, verify_step(batch, tokens, torch.zeros_like(slots_ahead(batch, self.width))))

    @cached_property
    def _schedule(self) -> ScheduleBatch:
        """The batch as SGLang's scheduler would have it; made once, as its copies to the device wait for all steps."""
        lengths = torch.full((self.batch,), self.length)
        requests = [Req(f"lim-{number}", "", [0], SamplingParams()) for number in range(self.batch)]
        return ScheduleBatch(
            reqs=requests,
            req_to_token_pool=self.runner.req_to_token_pool,
            model_config=self.runner.model_config,
            device=self.runner.device,
            req_pool_indices=torch.arange(1, self.batch + 1, device=self.runner.device),
            seq_lens=lengths.to(self.runner.device),
            seq_lens_cpu=lengths,
            orig_seq_lens=lengths.int().to(self.runner.device),
            spec_algorithm=self.runner.spec_algorithm,
        )

    def _zeros(self, count: int) -> Tensor:
        """Token 0, or the slot that SGLang's padding rows write to."""
        return torch.zeros(count, dtype=torch.int64, device=self.runner.device)
