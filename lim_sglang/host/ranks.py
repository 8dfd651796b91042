"""The processes that run a model together: which attend to the same requests, and which one logs and counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def attention_groups(args: Any) -> int:
    """Into how many groups DP attention splits the TP ranks; those of a group share the heads of its requests.

    Args:
        args: launch options in effect, or the parsed command line. SGLang 0.5.23 has ``--attn-dp-size`` for what was
            ``--dp-size`` with ``--enable-dp-attention``, resolves the old spelling to it, and DWDP as well.
    """
    spelled_old = args.dp_size if args.enable_dp_attention else 1
    return max(spelled_old, getattr(args, "attn_dp_size", 1), getattr(args, "dwdp_size", 1))


def attention_ranks() -> tuple[int, int, Callable[[Any, Any], None]] | None:
    """The processes that attend to the same requests: how many, this one's number, and their collective.

    None where this process attends alone.

    The collective takes an output [ranks, …] and an input […] and runs in captured graphs; every rank calls it alike.
    """
    import torch
    from sglang.srt.distributed import model_parallel_is_initialized
    from sglang.srt.distributed.parallel_state import get_attn_tp_group

    if not model_parallel_is_initialized() or get_attn_tp_group().world_size == 1:
        return None
    group = get_attn_tp_group()

    def all_gather(out: Any, part: Any) -> None:
        if part.is_cuda:
            group.all_gather_into_tensor(out.flatten(0, 1), part)
        else:  # SGLang 0.5.16 has no such operation on a CPU
            torch.distributed.all_gather(list(out), part, group=group.cpu_group)

    return group.world_size, group.rank_in_group, all_gather


def is_first_rank() -> bool:
    """Whether this process is TP rank 0 of its replica and pipeline stage, which logs what all ranks would log."""
    return _is_at_rank_zero("tp_rank")


def counts_for_its_group() -> bool:
    """Whether this process is the first of those that attend to the same requests, as SGLang's own metrics ask."""
    return _is_at_rank_zero("attn_tp_rank", "attn_cp_rank")


def _is_at_rank_zero(*ranks: str) -> bool:
    from sglang.srt.distributed import model_parallel_is_initialized
    from sglang.srt.runtime_context import get_parallel

    return not model_parallel_is_initialized() or not any(getattr(get_parallel(), rank) for rank in ranks)


def share_from_first(value: Any) -> Any:
    """The first one's ``value`` of the ranks that run the same steps; every one of them calls this."""
    from sglang.srt.distributed import get_tp_group, model_parallel_is_initialized

    return get_tp_group().broadcast_object(value) if model_parallel_is_initialized() else value
