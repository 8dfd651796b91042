"""What the lossless mode (``--speculative-algorithm LIM``) refuses beside what ``lim`` does anyway."""

from __future__ import annotations

import os
from typing import Any

from lim_sglang.host import ranks
from lim_sglang.host.refusals import BACKEND, LOSSLESS, Refusal, attention_backends, flag

DEFAULT_WIDTH = 7
"""Tokens of a verification unless ``--speculative-num-draft-tokens`` says so: six drafts and the token before them."""
WIDTHS = range(2, 17)
WIDEST_BY_TOKEN = 8
"""With pages of one token: a round reserves twice its width, and a row of slots is a context, 4 and one width long."""
ENV_DRAFTS = "SGLANG_LIM_DRAFTS"
"""``auto``: as many drafts as pay by measured costs and acceptance; ``always``: as many as there may be."""


def drafts_as_it_pays(device: str) -> bool:
    """Whether measured costs decide how many tokens are drafted: on a GPU unless the environment says otherwise."""
    return (os.environ.get(ENV_DRAFTS) or ("auto" if device.startswith("cuda") else "always")) == "auto"


def _environment(_args: Any, _model: Any) -> str:
    drafts = os.environ.get(ENV_DRAFTS) or "auto"
    return "" if drafts in ("auto", "always") else f"{ENV_DRAFTS}={drafts}"


def is_asked_for(args: Any) -> bool:
    """Whether launch options, resolved or not, ask for the lossless mode."""
    return str(args.speculative_algorithm).upper() == LOSSLESS


def _backends(args: Any, _model: Any) -> str:
    prefill, decode = attention_backends(args)
    other = next((name for name in (decode, prefill) if name != BACKEND), BACKEND)
    return "" if other == BACKEND else f"the attention backend {other or 'of SGLang'}"


def _width(args: Any, _model: Any) -> str:
    width = args.speculative_num_draft_tokens
    return "" if width is None or width in WIDTHS else f"--speculative-num-draft-tokens {width}"


def _width_by_token(args: Any, _model: Any) -> str:
    width, page = args.speculative_num_draft_tokens or DEFAULT_WIDTH, args.page_size or 1
    return f"--speculative-num-draft-tokens {width} with --page-size 1" if width > WIDEST_BY_TOKEN and page == 1 else ""


def _steps(args: Any, _model: Any) -> str:
    steps, width = args.speculative_num_steps, args.speculative_num_draft_tokens
    return "" if steps in (None, (width or DEFAULT_WIDTH) - 1) else f"--speculative-num-steps {steps}"


_OTHERS: dict[str, tuple[Any, ...]] = {
    "speculative_draft_model_path": (None,),
    "speculative_draft_attention_backend": (None,),
    "speculative_eagle_topk": (None, 1),
    "speculative_token_map": (None,),
    "speculative_attention_mode": ("prefill",),
    "speculative_draft_window_size": (None,),
    "speculative_accept_threshold_single": (1.0,),
    "speculative_accept_threshold_acc": (1.0,),
    "speculative_use_rejection_sampling": (False,),
    "speculative_adaptive": (False,),
}
"""Options of SGLang's own algorithms, with the values that mean nothing was asked for."""


def _others(args: Any, model: Any) -> str:
    found = (flag(name, off)(args, model) for name, off in _OTHERS.items())
    return next((text for text in found if text), "")


def _dp_attention(args: Any, _model: Any) -> str:
    return "DP attention" if ranks.attention_groups(args) > 1 else ""


_UNTRIED = "drafts have not been shown to leave its state alone"
REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        f"values of {ENV_DRAFTS} other than auto and always",
        _environment,
        "it says whether as many drafts are made as pay by measured costs, or as many as there may be",
        f"use {ENV_DRAFTS}=auto, {ENV_DRAFTS}=always or nothing",
    ),
    Refusal(
        "another attention backend",
        _backends,
        f"{BACKEND} drafts, and dense attention of the same backend verifies",
        f"add --attention-backend {BACKEND}, for prefill and decode",
    ),
    Refusal(
        "widths of a verification below 2 and above 16",
        _width,
        "a round verifies the last token and 1 to 15 drafts",
        f"use {WIDTHS[0]} to {WIDTHS[-1]}, or leave it out for {DEFAULT_WIDTH}",
    ),
    Refusal(
        f"widths above {WIDEST_BY_TOKEN} with pages of one token",
        _width_by_token,
        "SGLang reserves slots for two rounds, which the last ones of a context would take from another request",
        f"use {WIDTHS[0]} to {WIDEST_BY_TOKEN}, or a larger --page-size",
    ),
    Refusal(
        "another number of draft steps",
        _steps,
        "every draft takes one step, so the steps are --speculative-num-draft-tokens less one",
        "leave out --speculative-num-steps",
    ),
    Refusal(
        "options of other speculative algorithms",
        _others,
        f"{LOSSLESS} drafts a chain with the model itself and accepts exactly",
        "leave it out",
    ),
    Refusal("pipeline parallelism", flag("pp_size", (None, 1)), "no stage holds all layers", "use --pp-size 1"),
    Refusal("DP attention", _dp_attention, "idle ranks have not been shown to keep step", "leave it out"),
    Refusal("LoRA", flag("enable_lora"), "SGLang keeps adapters and speculation apart", "leave out --enable-lora"),
    Refusal(
        "mixed prefill and decode",
        flag("enable_mixed_chunk"),
        "a verification has as many tokens for every request",
        "leave out --enable-mixed-chunk",
    ),
    Refusal(
        "hidden states in answers",
        flag("enable_return_hidden_states"),
        _UNTRIED,
        "leave out --enable-return-hidden-states",
    ),
    Refusal(
        "hierarchical cache",
        flag("enable_hierarchical_cache"),
        _UNTRIED,
        "leave out --enable-hierarchical-cache",
    ),
    Refusal(
        "disaggregated prefill",
        flag("disaggregation_mode", (None, "null")),
        _UNTRIED,
        "leave out --disaggregation-mode",
    ),
)


def refusals_for(args: Any) -> tuple[Refusal, ...]:
    """Those that hold for these launch options."""
    return REFUSALS if is_asked_for(args) else ()
