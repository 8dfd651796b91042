"""Several kinds of steps with one model: SGLang's ``ModelRunner`` with another attention and graphs of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DecodePass:
    """Steps of one token per request, beside the verifications that the runner's own graphs are for.

    Attributes:
        runner: SGLang's ``ModelRunner``.
        attention: the backend that attends in these steps, over the runner's cache.
        graphs: SGLang's ``DecodeCudaGraphRunner`` of these steps; None where none are captured.
    """

    runner: Any
    attention: Any
    graphs: Any = None

    def captured(self) -> DecodePass:
        """The same with graphs, where the runner has captured its own."""
        graphs = self.runner.decode_cuda_graph_runner
        without = graphs is None or graphs is self.runner.eager_runner
        return DecodePass(self.runner, self.attention, None if without else self._capture(type(graphs)))

    def _capture(self, graph_runner: type) -> Any:
        """Graphs decide by the runner's algorithm whether they verify: without one, they decode."""
        from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

        kept = self.runner.spec_algorithm
        self.runner.spec_algorithm = SpeculativeAlgorithm.NONE
        try:
            with self.bound():
                return graph_runner(self.runner, attn_backend=self.attention)
        finally:
            self.runner.spec_algorithm = kept

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Let the runner's steps be of this kind."""
        runner = self.runner
        kept = runner.attn_backend, runner.decode_cuda_graph_runner
        runner.attn_backend, runner.decode_cuda_graph_runner = self.attention, self.graphs
        try:
            yield
        finally:
            runner.attn_backend, runner.decode_cuda_graph_runner = kept
