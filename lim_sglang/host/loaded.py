"""What is known only once weights are loaded: which layers attend, and how, in which dtypes, and what fits on the GPU.

A model's config counts its layers, but some classes of SGLang leave attention out of a layer, run a layer several times
or give it a window of their own. Their ``RadixAttention`` modules say so, once they are built, and have the last word
on the layer plan. A checkpoint may turn ``--kv-cache-dtype auto`` into fp8 by its quantisation config.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from lim_kernels.attend.config import AttendConfig, HeadShape, fit_config
from lim_kernels.gpu import gpu_of
from lim_kernels.select.shard import HeadShard
from lim_sglang.host import ranks
from lim_sglang.host.model import attention_layers, has_no_effect, is_encoder_only, stage_of
from lim_sglang.host.refusals import DENSE, UnsupportedError
from lim_sglang.layer_plan import LayerPlan

GPU_DTYPES = (torch.bfloat16, torch.float16)


def plan_of_loaded(plan: LayerPlan, runner: Any) -> LayerPlan:
    """``plan`` for the layers that attend in this process: all of the model's, or those of a pipeline stage.

    Where the model's class has not told SGLang of its layers' window, it is told here: FlashInfer would show those
    layers all tokens.

    Args:
        plan: by the model's config.
        runner: SGLang's ``ModelRunner``, its model loaded.

    Raises:
        UnsupportedError: a layer attends in a way that no token set is defined for.
        LimConfigError: a select layer does not attend to all tokens.
    """
    layers = attention_layers(runner.model)
    start, end = stage_of(runner)
    stage = range(start, min(end, len(plan.roles)))
    context = runner.model_config.context_len
    windows = {layer.layer_id: size for layer in layers if (size := window_of(layer.sliding_window_size, context))}
    found = (
        _kind(layers)
        or _numbers([layer.layer_id for layer in layers], stage)
        or _windows(windows, window_of(runner.sliding_window_size, context), len(layers))
        or _shapes(layers, on_gpu=str(runner.device).startswith("cuda"))
    )
    if found:
        name = runner.model_config.hf_config.architectures[0]
        raise UnsupportedError(f"the model ({name}), as loaded, does not work with lim: {found}; {DENSE}")
    if windows and runner.sliding_window_size is None:
        runner.sliding_window_size = max(windows.values()) - 1
    attending = {layer.layer_id for layer in layers} - windows.keys()
    return plan.limited_to(attending, stage.start, stage.stop).with_windows(windows, max(windows.values(), default=0))


def shard_of_loaded(runner: Any) -> HeadShard | None:
    """The loaded layers' query heads among those of all ranks that attend to the same requests; None for one rank.

    Raises:
        UnsupportedError: the ranks do not hold all heads, once each.
    """
    group = ranks.attention_ranks()
    if group is None:
        return None
    devices, rank, all_gather = group
    own = attention_layers(runner.model)[0].tp_q_head_num
    total = runner.model_config.num_attention_heads
    if own * devices != total:
        name = runner.model_config.hf_config.architectures[0]
        raise UnsupportedError(
            f"the model ({name}), as loaded, does not work with lim: {devices} ranks attend to the same requests with "
            f"{own} query heads each, and it has {total}; choose --tp-size and --dp-size so that they share them"
        )
    return HeadShard(total, rank * own, devices, all_gather)


def check_dtypes(q_dtype: torch.dtype, kv_dtype: torch.dtype, device: str) -> None:
    """Refuse dtypes that the backend of this kind of device does not read.

    Args:
        q_dtype: the model's (``ModelRunner.dtype``).
        kv_dtype: the cache's (``ModelRunner.kv_cache_dtype``), ``auto`` resolved.
        device: SGLang's name of the device, like ``cpu`` or ``cuda``.

    Raises:
        UnsupportedError: one line with what was found, the reason and a way out.
    """
    on_gpu = device.startswith("cuda")
    if on_gpu and q_dtype not in GPU_DTYPES:
        raise UnsupportedError(
            f"a model in {_name(q_dtype)} does not work with lim: on a GPU FlashInfer attends in bfloat16 or float16; "
            "add --dtype bfloat16"
        )
    second, fix = (
        (torch.float8_e4m3fn, "leave out --kv-cache-dtype, or add --kv-cache-dtype fp8_e4m3")
        if on_gpu
        else (torch.bfloat16, "add --kv-cache-dtype bfloat16")
    )
    if kv_dtype not in (q_dtype, second):
        raise UnsupportedError(
            f"a KV cache of {_name(kv_dtype)} under a model in {_name(q_dtype)} does not work with lim: on a "
            f"{'GPU' if on_gpu else 'CPU'} keys and values are read in the model's own dtype or {_name(second)}; {fix}"
        )


def check_heads(heads: HeadShape, device: torch.device, configs: Iterable[AttendConfig]) -> None:
    """Refuse heads for which no tiles of a launch fit on the gpu.

    Args:
        heads: sizes and dtypes on this rank.
        device: where the layers run.
        configs: constants of the launches that will be asked for.

    Raises:
        UnsupportedError: one line with what was found, the reason and a way out.
    """
    try:
        for config in configs:
            fit_config(config, heads, gpu_of(device))
    except ValueError as error:
        raise UnsupportedError(f"{error}; {DENSE}") from None


def _kind(layers: Sequence[Any]) -> str:
    """What is wrong with the kinds of attention, or an empty string."""
    for layer in layers:
        if layer.is_cross_attention:
            return f"layer {layer.layer_id} is cross-attention, whose cache no set is defined for"
        if is_encoder_only(layer):
            return f"layer {layer.layer_id} is encoder-only attention, which does not decode"
    return ""


def _numbers(ids: Sequence[int], stage: range) -> str:
    """What is wrong with the layers' numbers, or an empty string."""
    if not ids:
        return "none of its layers is attention over a KV cache"
    several = {layer: count for layer, count in Counter(ids).items() if count > 1}
    if several:
        first = min(several)
        return f"layer {first} attends {several[first]} times in a step, and a set is defined for one"
    beyond = sorted(set(ids) - set(stage))
    if beyond:
        return (
            f"it attends in layers {min(ids)} to {max(ids)}, and its config tells of {stage.start} to "
            f"{stage.stop - 1}: layer {beyond[0]} has no place in the layer plan"
        )
    return ""


def window_of(size: int | None, context: int) -> int:
    """How many tokens a sliding window shows, the current one included; 0 where it drops none of ``context`` tokens.

    Args:
        size: SGLang's, the tokens before the current one; None and -1 stand for no window.
    """
    return 0 if size is None or size < 0 or has_no_effect(size + 1, context) else size + 1


def _windows(windows: Mapping[int, int], of_backend: int, layers: int) -> str:
    """What is wrong with the layers' windows, or an empty string.

    Args:
        windows: by layer, what it sees.
        of_backend: what SGLang's attention backend makes of them: FlashInfer knows one size, by the model's class, and
            some classes count the current token twice; 0 where the class gives windows to its layers alone.
        layers: how many attend, with a window or without.
    """
    if of_backend and not windows:
        return f"a sliding window of {of_backend} tokens drops some that a set could name"
    if len(windows) == layers:
        return f"a sliding window of {min(windows.values())} tokens, and no layer attends to all"
    sizes = sorted({*windows.values()})
    if len(sizes) > 1:
        return f"its sliding windows differ ({' and '.join(map(str, sizes))} tokens), and SGLang's backend knows one"
    if sizes and of_backend and abs(sizes[0] - of_backend) > 1:
        return f"a sliding window of {sizes[0]} tokens is one of {of_backend} to SGLang's backend"
    return ""


def _shapes(layers: Sequence[Any], on_gpu: bool) -> str:
    """Which layers differ in heads or head sizes, or an empty string."""
    first = layers[0]
    for layer in layers:
        if _shape(layer) != _shape(first):
            return (
                f"layer {layer.layer_id} has {_in_words(layer)}, layer {first.layer_id} {_in_words(first)}, "
                "and lim serves layers of one shape"
            )
    if on_gpu and first.v_head_dim != first.qk_head_dim:
        return f"its keys and values differ in size ({first.qk_head_dim} and {first.v_head_dim})"
    return ""


def _shape(layer: Any) -> tuple[int, ...]:
    return (layer.tp_q_head_num, layer.tp_k_head_num, layer.tp_v_head_num, layer.qk_head_dim, layer.v_head_dim)


def _in_words(layer: Any) -> str:
    return (
        f"{layer.tp_q_head_num} query and {layer.tp_k_head_num} KV heads of {layer.qk_head_dim} and {layer.v_head_dim}"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
