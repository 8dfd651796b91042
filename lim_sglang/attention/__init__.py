"""The attention backends: one layer plan, one class per kind of device."""

from __future__ import annotations

import logging
from typing import Any

from lim_sglang import metrics
from lim_sglang.host.launch import resolve
from lim_sglang.layer_plan import LayerRole

logger = logging.getLogger(__name__)


def build(runner: Any) -> Any:
    """The backend for SGLang's ``ModelRunner`` ``runner``; a draft model's runner gets the dense one."""
    backend_class, dense_class = _classes(str(runner.device))
    if runner.is_draft_worker:
        return dense_class(runner)
    config, plan = resolve(runner.server_args, runner.model_config, warn=True)
    counts = ", ".join(f"{plan.count(role)} {role.name.lower()}" for role in LayerRole)
    logger.info("lim: %s, layers: %s, selecting in %s", config, counts, list(plan.select_layers))
    enable_metrics = bool(getattr(runner.server_args, "enable_metrics", False))
    recorded = metrics.DecodeMetrics(config, plan, prometheus=enable_metrics)
    metrics.publish(recorded)
    return backend_class(runner, config, plan, recorded)


def _classes(device: str) -> tuple[Any, Any]:
    """(lim, dense) backend classes for a device; each imports only its own host."""
    if device.startswith("cuda"):
        from lim_sglang.attention.flashinfer import FlashInferAttnBackend, LimFlashInferBackend

        return LimFlashInferBackend, FlashInferAttnBackend
    from lim_sglang.attention.torch_native import LimTorchNativeBackend, TorchNativeAttnBackend

    return LimTorchNativeBackend, TorchNativeAttnBackend
