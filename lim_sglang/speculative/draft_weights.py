"""Copies of the model's linear weights in int8, which drafts multiply by: half of the bytes that a draft step reads.

Verifications and plain steps keep the model's own weights, so no token of the output depends on a copy. A copy stands
in for SGLang's linear method of its layer (``quant_method``, layers/linear.py) while draft steps run or are captured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lim_kernels.linear.launch import MAX_ROWS, LinearWorkspace, int8_linear
from lim_kernels.linear.reference import Int8Weight, quantize
from lim_sglang.host import ranks
from lim_sglang.host.launch import one_line_for_the_command_line, resolve
from lim_sglang.host.refusals import UnsupportedError
from lim_sglang.speculative import linears

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner

logger = logging.getLogger(__name__)

ROWS = 1024  # of a weight that are rounded at once: no float32 twin of a whole weight exists
POOL_SHARE = 0.1  # of the KV cache's memory: what copies may take that nobody asked for
LEAST_SPEEDUP = 1.25  # of a step's products, below which copies are not worth their memory
TIMED_ROWS = 8


class DraftLinear:
    """SGLang's linear method for one layer, over an int8 copy of its weight.

    Args:
        layer: its weight is [N, K].
        workspace: scratch of all copies; None on a CPU, where the copy is the rounded weight in the model's dtype.
    """

    def __init__(self, layer: Any, workspace: LinearWorkspace | None) -> None:
        self.layer, self.original = layer, layer.quant_method
        self.workspace = workspace
        self.calls = 0
        weight = layer.weight.detach()
        if workspace is None:
            self.weight: tuple[Tensor, ...] = (torch.empty_like(weight),)
        else:
            self.weight = Int8Weight(torch.empty_like(weight, dtype=torch.int8), torch.empty_like(weight[:, 0]))

    @property
    def nbytes(self) -> int:
        """Memory of the copy, in bytes."""
        return sum(part.nbytes for part in self.weight)

    @torch.no_grad()
    def fill(self) -> None:
        """Round the layer's weight, in place: graphs hold the copy's addresses."""
        for first in range(0, len(self.layer.weight), ROWS):
            found = quantize(self.layer.weight[first : first + ROWS])
            for part, rows in zip(self.weight, [found.dequantize()] if self.workspace is None else found, strict=True):
                part[first : first + ROWS] = rows

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x`` [..., K] times the copy: [..., N]; times the layer's own weight where the rows are many."""
        self.calls += 1
        if self.workspace is None:
            return F.linear(x, self.weight[0], bias)
        rows = x.reshape(-1, x.shape[-1])
        if not 1 <= len(rows) <= MAX_ROWS:
            own: Tensor = self.original.apply(layer, x, bias)
            return own
        out = int8_linear(rows.contiguous(), Int8Weight(*self.weight), self.workspace)
        return (out if bias is None else out.add_(bias)).view(*x.shape[:-1], -1)

    def embedding(self, layer: nn.Module, ids: Tensor) -> Tensor:
        """Rows of the layer's own weight, where a head is the embedding as well."""
        rows: Tensor = self.original.embedding(layer, ids)
        return rows


class DraftWeights:
    """The copies of one model; made on first use and whenever the model's weights changed.

    Args:
        layers: whose weights are copied.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        device = layers[0].weight.device
        workspace = LinearWorkspace.allocate(device) if device.type == "cuda" else None
        self.copies = [DraftLinear(layer, workspace) for layer in layers]
        self.fills = 0
        self._is_stale = True

    @property
    def nbytes(self) -> int:
        """Memory of all copies, in bytes."""
        return sum(copy.nbytes for copy in self.copies)

    def mark_stale(self) -> None:
        """The model's weights have changed: the copies cost acceptance, but no token, until they are made anew."""
        self._is_stale = True

    def refresh(self) -> None:
        """Make the copies of the weights as they are now, where they changed."""
        if self._is_stale:
            for copy in self.copies:
                copy.fill()
            self._is_stale = False
            self.fills += 1

    @contextmanager
    def swap_in(self) -> Iterator[None]:
        """A block in which the layers multiply by their copies."""
        for copy in self.copies:
            copy.layer.__dict__["quant_method"] = copy
        try:
            yield
        finally:
            for copy in self.copies:
                copy.layer.__dict__["quant_method"] = copy.original

    def check_calls(self, asked: str) -> None:
        """See that the steps since the last check called every copy, and all equally often.

        What goes around its copy multiplies by its own weight: a gain less, and nothing wrong. So only who asked for
        int8 is refused; others are warned.

        Raises:
            UnsupportedError: ``asked`` is ``"int8"`` and copies were not called.
        """
        calls = [copy.calls for copy in self.copies]
        for copy in self.copies:
            copy.calls = 0
        if min(calls) < 1 or min(calls) != max(calls):
            missed = sum(number != max(calls) for number in calls) or len(calls)
            problem = (
                f"draft_weights=int8 does not work with this model: {missed} of its {len(calls)} linear layers are not "
                "called once in every step; use --lim-draft-weights model"
            )
            if asked == "int8":
                raise UnsupportedError(problem)
            logger.warning("lim: %s", problem)

    def report(self) -> dict[str, Any]:
        """Format, layers, memory in MiB, and how often the copies were made, for ``/server_info``."""
        return {"format": "int8", "layers": len(self.copies), "mib": self.nbytes >> 20, "fills": self.fills}


def weights_of_launch(server_args: Any, runner: ModelRunner) -> DraftWeights | None:
    """``make_draft_weights`` as the configuration of a launch asks for.

    Raises:
        As ``make_draft_weights``, for a program that uses ``Engine``.
        SystemExit: with one line on stderr, for the command line.
    """
    with one_line_for_the_command_line(server_args):
        config, _ = resolve(server_args, runner.model_config)
        return make_draft_weights(runner, config.draft_weights)


def make_draft_weights(runner: ModelRunner, asked: str) -> DraftWeights | None:
    """Memory for the copies, before SGLang sizes its KV cache; None where drafts use the model's own weights.

    Args:
        asked: ``draft_weights`` of the configuration: ``"auto"``, ``"model"`` or ``"int8"``.

    Raises:
        UnsupportedError: int8 was asked for and cannot be.
    """
    on_gpu = str(runner.device).startswith("cuda")
    if asked == "model" or (asked == "auto" and not on_gpu):
        return None
    try:
        layers = linears.copyable_layers(runner)
        if on_gpu:
            _check_room(sum(layer.weight.numel() for layer in layers), linears.pool_bytes(runner), asked)
        with linears.region_of_weights(runner):
            weights = DraftWeights(layers)
        if asked == "auto":
            _check_speedup(weights)
    except ValueError as error:
        if asked == "int8":
            raise UnsupportedError(
                f"draft_weights=int8 does not work here: {error}; use --lim-draft-weights model"
            ) from None
        logger.info("lim: drafts use the model's own weights: %s", error)
        return None
    logger.info("lim: drafts use int8 copies of %d weights, %d MiB", len(layers), weights.nbytes >> 20)
    return weights


def _check_room(needed: int, pool: int, asked: str) -> None:
    """Raise ``ValueError`` where copies of ``needed`` bytes leave too little of ``pool`` bytes, on any rank."""
    allowed, of_all = ranks.share_from_first((POOL_SHARE * pool, pool))
    if needed > (allowed if asked == "auto" else of_all):
        raise ValueError(
            f"int8 copies take {needed / 2**30:.1f} GiB, and the KV cache has {of_all / 2**30:.1f} GiB"
            + (f", of which they may take {POOL_SHARE:.0%}" if asked == "auto" else "")
        )


def _check_speedup(weights: DraftWeights) -> None:
    """Raise ``ValueError`` where the copies multiply hardly faster than the layers, by a step's products."""
    inputs = {copy.layer.weight.shape[1]: torch.randn_like(copy.layer.weight[:TIMED_ROWS]) for copy in weights.copies}

    def multiply(by: Callable[[DraftLinear], Any]) -> None:
        for copy in weights.copies:
            by(copy).apply(copy.layer, inputs[copy.layer.weight.shape[1]] * 1)  # no product follows a product in a step

    own = _graph_ms(lambda: multiply(lambda copy: copy.original))
    copied = _graph_ms(lambda: multiply(lambda copy: copy))
    for copy in weights.copies:
        copy.calls = 0
    own, copied = ranks.share_from_first((own, copied))
    logger.info("lim: products of %d rows: %.2f ms, with int8 copies %.2f ms", TIMED_ROWS, own, copied)
    if own < LEAST_SPEEDUP * copied:
        raise ValueError(f"int8 copies multiply only {own / copied:.2f} times as fast")


def _graph_ms(run: Callable[[], None], repeats: int = 5) -> float:
    """Milliseconds of a captured run, the least of several."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return min(times)
