"""Answers a request with an error where SGLang would take its values and lose the whole server to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lim_patches.patch import Patch

_LARGEST_INT32 = 2**31 - 1
_LARGEST_BIAS = 1e30  # divided by the lowest temperature, 1e-6, it is still a finite float32


def _expect(holds: bool, name: str, value: Any, allowed: str) -> None:
    """SGLang answers a ValueError of its checks with status 400 and the error's text."""
    if not holds:
        raise ValueError(f"{name}={value!r} is not allowed: expected {allowed}")


def _lies_within(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and least <= value <= most


def _check_types(params: Any) -> None:
    """Hold every value against the type that SGLang declares for it and trusts, custom parameters left out."""
    import msgspec

    for field in msgspec.structs.fields(params):
        value = getattr(params, field.name)
        try:
            msgspec.convert(value, Any if field.name == "custom_params" else field.type)
        except msgspec.ValidationError as error:
            raise ValueError(f"{field.name}={value!r} is not allowed: {error}") from error


def check_sampling(_result: Any, params: Any, vocab_size: int) -> None:
    """Judge the sampling parameters that SGLang's own check lets pass.

    Raises:
        ValueError: one line, for the client.
    """
    _check_types(params)
    for token, bias in (params.logit_bias or {}).items():
        holds = isinstance(bias, int | float) and abs(bias) <= _LARGEST_BIAS
        _expect(holds, f"logit_bias[{token}]", bias, f"a number from -{_LARGEST_BIAS:g} to {_LARGEST_BIAS:g}")
    _expect(params.top_k <= _LARGEST_INT32, "top_k", params.top_k, f"at most {_LARGEST_INT32}")
    for token in params.stop_token_ids or () if params.min_new_tokens > 0 else ():
        _expect(0 <= token < vocab_size, "stop_token_ids", token, f"0 to {vocab_size - 1}")


def check_request(_result: Any, manager: Any, obj: Any, input_ids: Sequence[int] | None) -> None:
    """Judge the rest of a request, likewise.

    Raises:
        ValueError: one line, for the client.
    """
    ready = obj.sampling_params.get("is_normalized")  # SGLang's own mark, with which it prepares nothing
    _expect(not ready, "is_normalized", ready, "nothing")
    _expect(input_ids is None or len(input_ids) > 0, "input_ids", input_ids, "at least one token")
    last = manager.model_config.vocab_size - 1
    for token in input_ids or ():
        _expect(0 <= token <= last, "input_ids", token, f"0 to {last}")
    overrides = getattr(obj, "positional_embed_overrides", None)
    _expect(overrides is None or hasattr(overrides, "positions"), "positional_embed_overrides", overrides, "nothing")
    if getattr(obj, "return_logprob", False):
        wanted, start = obj.top_logprobs_num, obj.logprob_start_len
        _expect(_lies_within(wanted, 0, last + 1), "top_logprobs_num", wanted, f"0 to {last + 1}")
        _expect(start >= -1, "logprob_start_len", start, "-1 or more")


PATCHES = (
    Patch(
        "sglang.srt.sampling.sampling_params.SamplingParams.verify",
        check_sampling,
        "after",
        only_on_cpu_host=True,
    ),
    Patch(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request",
        check_request,
        "after",
        only_on_cpu_host=True,
    ),
)
