"""The places where the tested SGLang releases differ; no other module branches on a version."""

from __future__ import annotations

from typing import Any

from lim_sglang.host.host_check import HostName, check


def effective_args(server_args: Any) -> Any:
    """The launch options in effect: newer SGLang keeps the user's input apart from what it resolved it to."""
    try:
        from sglang.srt.arg_groups.model_override_base import resolving_view
    except ImportError:
        return server_args
    return resolving_view(server_args)


def pages_need_triton() -> bool:
    """Whether this SGLang allocates pages of several tokens by Triton kernels wherever it runs; newer ones do not."""
    return not check([HostName("sglang.srt.mem_cache.allocator.paged", "alloc_decode_naive")])[0].ok


def is_qwen_sparse_attention(hf_config: Any) -> bool:
    """Whether the model is a Qwen with a trained selection of tokens, which SGLang 0.5.16 does not know."""
    try:
        from sglang.srt.layers.attention.qsa.config import is_qwen_qsa
    except ImportError:
        return False
    return bool(is_qwen_qsa(hf_config))


def has_pdmux(args: Any) -> bool:
    """Whether PD multiplexing is asked for; SGLang 0.5.23 no longer has it."""
    return bool(getattr(args, "enable_pdmux", False))


def no_draft_worker() -> Any:
    """What stands for the draft worker of an algorithm without one; SGLang 0.5.16 asks for its KV pool all the same."""
    from types import SimpleNamespace

    from sglang.srt.speculative.base_spec_worker import BaseSpecWorker

    if hasattr(BaseSpecWorker, "primary_draft_kv_pool"):
        return None
    return SimpleNamespace(draft_runner=SimpleNamespace(token_to_kv_pool=None), draft_runners=[])


def read_done_event(runner: Any) -> str:
    """The attribute of SGLang's ``ModelRunner`` by which a step says that it no longer reads the table of slots.

    Raises:
        AttributeError: this SGLang has another.
    """
    for name in ("war_fastpath_read_done_event", "shared_read_done_event"):
        if hasattr(runner, name):
            return name
    raise AttributeError("SGLang's ModelRunner has no event that steps record once they have read the table of slots")


def add_logprobs(batch: Any, logits_output: Any, tokens: Any, width: int) -> None:
    """Put the log-probabilities of a verification's tokens into ``logits_output``.

    Args:
        batch: SGLang's ``ScheduleBatch``.
        logits_output: with logits [B * width, V] in ``next_token_logits``.
        tokens: [B * width], ``width`` rows per request.
    """
    import torch
    from sglang.srt.layers import logprob_processor

    if hasattr(logprob_processor, "compute_spec_logprobs"):
        logprob_processor.compute_spec_logprobs(batch, logits_output, tokens, chain_stride=width)
    else:
        rows = torch.arange(len(tokens), device=tokens.device).view(-1, width)
        logprob_processor.compute_spec_v2_logprobs(batch, logits_output, tokens, rows, width - 1)
