"""Which attention and graphs SGLang's model runner has during a step; graphs themselves need a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from lim_sglang.speculative.forward import StepKind


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
