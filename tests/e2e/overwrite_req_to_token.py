"""An SGLang plugin for tests: zeroes ``req_to_token`` as soon as a captured decode step says that it has read it.

SGLang's scheduler may rewrite the table from that moment on, while the step's layers still run; and newer releases may
keep other ids in it than the layers need. So nothing may change. While the file of ``TOO_EARLY`` exists the table is
zeroed before the step's plan, and everything must change. Without overlap scheduling only: nobody else may look
meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

EXECUTE = "sglang.srt.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner.execute"
READ_DONE = ("shared_read_done_event", "war_fastpath_read_done_event")  # SGLang 0.5.23, 0.5.16
STEPS, TOO_EARLY = "LIM_TEST_OVERWRITTEN_STEPS", "LIM_TEST_OVERWRITE_TOO_EARLY"  # paths of files


def register() -> None:
    """Hook captured steps; SGLang calls this in every process."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(EXECUTE, overwrite, HookType.AROUND)


def overwrite(original: Callable[..., Any], self: Any, *args: Any, **options: Any) -> Any:
    """One captured step."""
    table = self.model_runner.req_to_token_pool.req_to_token
    saved = table.clone()
    if Path(os.environ[TOO_EARLY]).exists():
        table.zero_()
        result = original(self, *args, **options)
    else:
        result = original(self, *args, **options)
        zero_after(
            next(getattr(self.model_runner, name) for name in READ_DONE if hasattr(self.model_runner, name)), table
        )
        with Path(os.environ[STEPS]).open("a") as file:
            file.write("x")
    table.copy_(saved)
    return result


def zero_after(read_done: Any, table: torch.Tensor) -> None:
    """On a stream of its own, beside the step that runs; what follows on the current stream waits for it."""
    side = torch.cuda.Stream()
    side.wait_event(read_done)
    with torch.cuda.stream(side):
        table.zero_()
    torch.cuda.current_stream().wait_stream(side)
