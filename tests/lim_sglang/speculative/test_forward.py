"""Which attention and graphs SGLang's model runner has during a step, and the steps of a round's drafts.

Graphs themselves need a GPU.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from lim_sglang.speculative import forward
from lim_sglang.speculative.forward import LimDrafter, StepKind, slots_ahead
from lim_sglang.speculative.sampling import SamplingRule, distribution

from .test_sampling import sampling_info


class Graphs:
    """Stands for ``DecodeCudaGraphRunner``: keeps what it was captured with."""

    def __init__(self, runner: Any, *, attn_backend: Any) -> None:
        self.with_algorithm = runner.spec_algorithm
        self.with_attention = runner.attn_backend, attn_backend


def runner(graphs: Any) -> Any:
    return SimpleNamespace(
        attn_backend="verify", decode_cuda_graph_runner=graphs, spec_algorithm="LIM", eager_runner=object()
    )


def test_a_step_is_of_its_kind_and_the_next_one_as_before() -> None:
    host = runner("verify graphs")
    with StepKind(host, "lim", "lim graphs").swap_in():
        assert (host.attn_backend, host.decode_cuda_graph_runner) == ("lim", "lim graphs")
    assert (host.attn_backend, host.decode_cuda_graph_runner) == ("verify", "verify graphs")


def test_a_step_that_fails_leaves_the_runner_as_it_was() -> None:
    host = runner("verify graphs")
    with pytest.raises(RuntimeError, match="out of memory"), StepKind(host, "lim").swap_in():
        raise RuntimeError("out of memory")
    assert (host.attn_backend, host.decode_cuda_graph_runner) == ("verify", "verify graphs")


def test_graphs_are_captured_as_without_speculation() -> None:
    host = runner(Graphs(runner(None), attn_backend=None))
    captured = StepKind(host, "lim").capture_graphs()
    assert captured.graphs.with_algorithm is SpeculativeAlgorithm.NONE
    assert captured.graphs.with_attention == ("lim", "lim")
    assert (host.spec_algorithm, host.attn_backend) == ("LIM", "verify")


def test_nothing_is_captured_where_the_runner_captures_nothing() -> None:
    host = runner(None)
    assert StepKind(host, "lim").capture_graphs().graphs is None
    host.decode_cuda_graph_runner = host.eager_runner
    assert StepKind(host, "lim").capture_graphs().graphs is None


def schedule_batch(lengths: list[int], info: Any, requests: list[Any]) -> ScheduleBatch:
    """SGLang's batch of decoding requests; position ``p`` of the n-th request is in slot ``100 * (n + 1) + p``."""
    rows = torch.arange(1, len(lengths) + 1)
    table = 100 * torch.arange(len(lengths) + 1, dtype=torch.int32)[:, None] + torch.arange(100, dtype=torch.int32)
    return ScheduleBatch(
        reqs=requests,
        req_to_token_pool=SimpleNamespace(req_to_token=table),
        req_pool_indices=rows,
        seq_lens=torch.tensor(lengths),
        seq_lens_cpu=torch.tensor(lengths),
        sampling_info=info,
        forward_mode=ForwardMode.DECODE,
        device="cpu",
    )


@pytest.mark.parametrize("greedy", [True, False])
def test_drafts_are_a_chain_of_decode_steps(monkeypatch: pytest.MonkeyPatch, greedy: bool) -> None:
    """Each reads and writes one token further than the one before, on the device and by the host's lengths."""
    torch.manual_seed(0)
    logits, bias = torch.randn(3, 2, 9), 5 * torch.randn(2, 9)  # by step and request
    options = {} if greedy else {"is_all_greedy": False, "top_ks": torch.full((2,), 9)}
    batch = schedule_batch([7, 12], sampling_info(2, logit_bias=bias, **options), [])
    host, steps = runner("verify graphs"), []

    def run_step(runner: Any, step: ScheduleBatch) -> torch.Tensor:
        steps.append((runner.attn_backend, step))
        return logits[len(steps) - 1].clone()

    monkeypatch.setattr(forward, "run_step", run_step)
    rule, last_tokens = SamplingRule.from_batch(batch.sampling_info, False), torch.tensor([3, 4])
    drafts = LimDrafter(StepKind(host, "lim")).draft(batch, last_tokens, slots_ahead(batch, 5), rule, 3)
    inputs = [last_tokens, *drafts.tokens.T]
    for number, (attention, step) in enumerate(steps):
        assert (attention, step.forward_mode) == ("lim", ForwardMode.DECODE)
        assert step.input_ids.tolist() == inputs[number].tolist()
        assert step.out_cache_loc.tolist() == [107 + number, 212 + number]
        assert step.seq_lens.tolist() == step.seq_lens_cpu.tolist() == [8 + number, 13 + number]
        assert step.seq_lens_sum == 21 + 2 * number
    assert batch.seq_lens.tolist() == batch.seq_lens_cpu.tolist() == [7, 12]
    biased = (logits + bias).transpose(0, 1)
    if greedy:
        assert drafts.tokens.tolist() == biased.argmax(-1).tolist()
    else:
        assert drafts.proposals is not None
        torch.testing.assert_close(drafts.proposals, distribution(biased, rule))
