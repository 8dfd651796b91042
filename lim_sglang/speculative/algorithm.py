"""``--speculative-algorithm LIM``: what SGLang asks a speculative algorithm before it has a worker."""

from __future__ import annotations

import logging
from typing import Any

from sglang.srt.speculative.spec_registry import CustomSpecAlgo

from lim_sglang.host.finders import DEFAULT_WIDTH, LOSSLESS
from lim_sglang.host.launch import one_line_for_the_command_line

logger = logging.getLogger(__name__)

MAX_RUNNING_REQUESTS = 48  # as SGLang's own speculative algorithms have it


class LimSpecAlgorithm(CustomSpecAlgo):
    """A chain of drafts by the target model itself, in the target's own KV cache.

    SGLang asks every algorithm for the first three methods, and its base class for algorithms of plugins lacks them.
    """

    def need_topk(self) -> bool:
        return False

    def carries_draft_hidden_states(self) -> bool:
        return False

    def create_future_map(self, device: Any, req_to_token_pool: Any, *args: Any, **kwargs: Any) -> Any:
        from sglang.srt.managers.overlap_utils import FutureMap

        return FutureMap(device, self, req_to_token_pool, *args, **kwargs)

    def has_draft_kv(self) -> bool:
        return False

    def handle_server_args(self, server_args: Any) -> None:
        """Resolve the options that the user left open."""
        width = server_args.speculative_num_draft_tokens or DEFAULT_WIDTH
        server_args.speculative_num_draft_tokens = width
        server_args.speculative_num_steps = width - 1
        server_args.speculative_eagle_topk = 1
        if server_args.max_running_requests is None:
            server_args.max_running_requests = MAX_RUNNING_REQUESTS
            logger.warning("lim: %d requests run at a time; more with --max-running-requests", MAX_RUNNING_REQUESTS)
        if server_args.device == "cpu":
            server_args.disable_overlap_schedule = True


def register() -> None:
    """Make SGLang know the algorithm; in every process, since all of them look the name up.

    A scheduler's process asks for the worker's class; there the mode's patches are applied first.
    """
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    @SpeculativeAlgorithm.register(LOSSLESS, supports_overlap=True, spec_class=LimSpecAlgorithm)
    def worker_class(server_args: Any) -> type:
        from lim_patches import ledger, registry

        with one_line_for_the_command_line(server_args):
            registry.apply(ledger.LOSSLESS)
        from lim_sglang.speculative.worker import LimSpecWorker

        return LimSpecWorker
