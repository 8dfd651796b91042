"""The linear layers of a loaded model whose weights drafts may copy, and where such copies belong."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from typing import Any

import torch

from lim_kernels.gpu import gpu_of
from lim_sglang.host import compat

LEAST_CAPABILITY = (8, 0)  # bfloat16 products


def copyable_layers(runner: Any) -> list[Any]:
    """The decoder's linear layers, and the head where it multiplies as they do.

    Args:
        runner: SGLang's ``ModelRunner``, its model loaded.

    Raises:
        ValueError: one of them has no such copy; the message says why.
    """
    from sglang.srt.layers.linear import LinearBase
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
    from sglang.srt.layers.quantization.unquant import UnquantizedEmbeddingMethod, UnquantizedLinearMethod
    from sglang.srt.layers.radix_attention import RadixAttention

    args = compat.effective_args(runner.server_args)
    if args.cpu_offload_gb:
        raise ValueError("the weights are offloaded (--cpu-offload-gb)")
    if "cuda" in str(runner.device) and gpu_of(torch.device("cuda")).capability < LEAST_CAPABILITY:
        raise ValueError("the GPU is older than compute capability 8.0")
    modules = dict(runner.model.named_modules())
    stacks = {re.split(r"\.\d+\.", name)[0] + "." for name, each in modules.items() if isinstance(each, RadixAttention)}
    layers = [each for name, each in modules.items() if name.startswith(tuple(stacks))]
    if any(isinstance(each, FusedMoE) for each in layers):
        raise ValueError("the model has experts, which are multiplied by kernels of their own")
    layers = [each for each in layers if isinstance(each, LinearBase)]
    if not all(type(each.quant_method) is UnquantizedLinearMethod and is_plain(each) for each in layers) or not layers:
        raise ValueError("its weights are quantised or packed already")
    if any(getattr(getattr(each, "dual_gemm", None), "mode", None) is not None for each in modules.values()):
        raise ValueError("SGLang multiplies some of its weights two at a time (DualGemm)")
    head = getattr(runner.model, "lm_head", None)
    plain = (UnquantizedEmbeddingMethod, UnquantizedLinearMethod)
    copies_head = type(getattr(head, "quant_method", None)) in plain and is_plain(head) and not args.enable_fp32_lm_head
    return [*layers, head] if copies_head else layers


def is_plain(layer: Any) -> bool:
    """Whether a layer's weight lies as a matrix [N, K] of a floating dtype, not packed for a CPU's units."""
    return (
        layer.weight.ndim == 2 and layer.weight.is_floating_point() and not getattr(layer, "use_intel_amx_backend", 0)
    )


def region_of_weights(runner: Any) -> AbstractContextManager[None]:
    """A block whose allocations are released and restored with the model's weights, where SGLang does that."""
    args = compat.effective_args(runner.server_args)
    region: AbstractContextManager[None] = runner.memory_saver_adapter.region(
        "weights", enable_cpu_backup=args.enable_weights_cpu_backup
    )
    return region


def pool_bytes(runner: Any) -> int:
    """About how much of the GPU's memory the KV cache will get of what is free now."""
    free, total = torch.cuda.mem_get_info()
    reserved = (1 - compat.effective_args(runner.server_args).mem_fraction_static) * total
    return int(max(0, free - reserved))
