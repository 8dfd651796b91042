"""The attention backends: one layer plan, one class per kind of device."""

from __future__ import annotations

import logging
from typing import Any

from lim_sglang import metrics
from lim_sglang.host import compat, ranks
from lim_sglang.host.finders import asks_for_lossless
from lim_sglang.host.launch import one_line_for_the_command_line, resolve
from lim_sglang.host.loaded import check_dtypes, plan_of_loaded, shard_of_loaded

logger = logging.getLogger(__name__)


def build(runner: Any) -> Any:
    """The backend that SGLang's ``ModelRunner`` ``runner`` attends with; the lossless mode's drafts have their own.

    Raises:
        See ``build_sparse``.
    """
    return build_dense(runner) if asks_for_lossless(runner.server_args) else build_sparse(runner)


def build_dense(runner: Any) -> Any:
    """The backend of the lossless mode's verifications and of all else that is dense in it."""
    if str(runner.device).startswith("cuda"):
        from lim_sglang.attention.dense_flashinfer import DenseFlashInferBackend

        width = compat.effective_args(runner.server_args).speculative_num_draft_tokens
        return DenseFlashInferBackend(runner, width)
    from lim_sglang.attention.dense_torch_native import DenseTorchNativeBackend

    return DenseTorchNativeBackend(runner)


def build_sparse(runner: Any) -> Any:
    """The backend of sparse decode for SGLang's ``ModelRunner`` ``runner``, whose model is loaded.

    Raises:
        LimConfigError, UnsupportedError: for a program that uses ``Engine``: the model as loaded cannot be served.
        SystemExit: with one line on stderr, for the command line.
    """
    with one_line_for_the_command_line(runner.server_args):
        config, planned = resolve(runner.server_args, runner.model_config, warn=True)
        plan = plan_of_loaded(planned, runner)
        shard = shard_of_loaded(runner)
        check_dtypes(runner.dtype, runner.kv_cache_dtype, str(runner.device))
        counts = ", ".join(f"{plan.count(role)} {role.name.lower()}" for role in plan.kinds)
        logger.info("lim: %s, layers: %s, selecting in %s", config, counts, list(plan.select_layers))
        if shard is not None:
            logger.info("lim: %d ranks share %d query heads and one token set", shard.devices, shard.num_heads)
        # Ranks that attend to the same requests count the same.
        prometheus = bool(getattr(runner.server_args, "enable_metrics", False)) and ranks.counts_for_its_group()
        recorded = metrics.DecodeMetrics(config, plan, prometheus=prometheus)
        made = runner, config, plan, recorded, shard
        if str(runner.device).startswith("cuda"):  # only the device's own host is imported
            from lim_sglang.attention.flashinfer import LimFlashInferBackend

            backend: Any = LimFlashInferBackend(*made)
        else:
            from lim_sglang.attention.torch_native import LimTorchNativeBackend

            backend = LimTorchNativeBackend(*made)
    metrics.publish(recorded)
    return backend
