"""A stand-in for FlashInfer, which needs a GPU."""

from __future__ import annotations

from typing import Any

import torch


class RecordingWrapper:
    """Takes FlashInfer's arguments and keeps them."""

    made: list[RecordingWrapper]

    def __init__(self, float_workspace: torch.Tensor, kv_layout: str, **options: Any) -> None:
        self.float_workspace, self.kv_layout, self.options = float_workspace, kv_layout, options
        self.plans: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.int_workspace = torch.empty(8 << 20, dtype=torch.uint8, device="meta")
        self.made.append(self)

    def reset_workspace_buffer(self, float_workspace: torch.Tensor, int_workspace: torch.Tensor) -> None:
        assert float_workspace is self.float_workspace
        self.int_workspace = int_workspace

    def plan(self, *args: Any, **options: Any) -> None:
        self.plans.append((args, options))
        if not self.options["use_cuda_graph"]:
            self._paged_kv_indptr_buf, self._paged_kv_indices_buf = args[:2]
