"""How the things that ``refusals`` lists are found in launch options and in a model's config."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from lim_sglang.config import ENV_DRAFTS
from lim_sglang.host import compat, ranks, versions
from lim_sglang.host.model import is_gated_delta_net, windowed_layers

Finder = Callable[[Any, Any], str]
"""Returns what was found, as the user would recognise it, or an empty string.

Arguments: launch options in effect (``compat.effective_args``) or the parsed command line, where ``device`` may still
be None; SGLang's ``ModelConfig``.
"""
BACKEND = "lim"
LOSSLESS = "LIM"
"""The speculative algorithm of the lossless mode."""
KV_DTYPES = {"cpu": ("auto", "bfloat16", "bf16"), "cuda": ("auto", "bfloat16", "bf16", "fp8_e4m3")}
DEFAULT_WIDTH = 7
"""Tokens of a verification unless ``--speculative-num-draft-tokens`` says so: six drafts and the token before them."""
WIDTHS = range(2, 17)
WIDEST_BY_TOKEN = 8
"""With pages of one token: a round reserves twice its width, and a row of slots is a context, 4 and one width long."""


def asks_for_lossless(args: Any) -> bool:
    """Whether launch options, resolved or not, ask for the lossless mode."""
    return str(args.speculative_algorithm).upper() == LOSSLESS


def attention_backends(args: Any) -> tuple[str | None, str | None]:
    """(prefill, decode) backend names that ``args`` select, None where SGLang is to choose."""
    return (
        args.prefill_attention_backend or args.attention_backend,
        args.decode_attention_backend or args.attention_backend,
    )


def serves_on_cpu() -> bool:
    """Whether SGLang will launch no Triton kernel for ``lim`` in this process: only the CPU host makes it so."""
    from sglang.srt.utils.common import support_triton

    return not support_triton("lim")


def flag(name: str, off: tuple[Any, ...] = (None, False)) -> Finder:
    """Finds launch option ``name`` set to anything but the values in ``off``."""

    def found(args: Any, _model: Any) -> str:
        value = getattr(args, name)
        flag = "--" + name.replace("_", "-")
        return "" if value in off else flag if value is True else f"{flag} {value}"

    return found


def on_device(device: str, found: Finder) -> Finder:
    """Looks for something on one kind of device only."""
    return lambda args, model: found(args, model) if args.device == device else ""


def of_model(is_refused: Callable[[Any], bool]) -> Finder:
    """Finds a property of the model; what the user recognises is its architecture."""
    return lambda _args, model: f"the model ({model.hf_config.architectures[0]})" if is_refused(model) else ""


def gated_delta_net_on_blackwell(args: Any, model: Any) -> str:
    import torch

    blackwell = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (10, 0)
    return of_model(is_gated_delta_net)(args, model) if blackwell else ""


def lossless_gated_delta_net(args: Any, model: Any) -> str:
    found = of_model(is_gated_delta_net)(args, model) if asks_for_lossless(args) else ""
    return found and f"--speculative-algorithm {LOSSLESS} with {found}"


def prefill_only(args: Any, _model: Any) -> str:
    prefill, decode = attention_backends(args)
    return f"--decode-attention-backend {decode}" if prefill == BACKEND != decode else ""


def pages_on_cpu(args: Any, model: Any) -> str:
    return flag("page_size", (None, 1))(args, model) if compat.pages_need_triton() else ""


def other_speculation(args: Any, model: Any) -> str:
    found = flag("speculative_algorithm")(args, model)
    return "" if found.upper().endswith(f" {LOSSLESS}") else found


def without_decode(args: Any, _model: Any) -> str:
    if args.disaggregation_mode == "prefill":
        return "--disaggregation-mode prefill"
    return "--encoder-only" if args.encoder_only else ""


def without_generation(args: Any, model: Any) -> str:
    if model.is_generation and not args.is_embedding:
        return ""
    return f"the model ({model.hf_config.architectures[0]})" + (" with --is-embedding" if args.is_embedding else "")


def other_device(args: Any, _model: Any) -> str:
    if args.device not in (None, "cpu", "cuda"):
        return f"--device {args.device}"
    import torch

    return "an AMD GPU" if args.device == "cuda" and torch.version.hip else ""  # SGLang calls it cuda as well


def kv_cache_dtype(args: Any, _model: Any) -> str:
    allowed = KV_DTYPES.get(args.device, KV_DTYPES["cuda"])
    return "" if args.kv_cache_dtype in allowed else f"--kv-cache-dtype {args.kv_cache_dtype}"


def model_dtype(args: Any, model: Any) -> Any:
    """The torch dtype that the model will run in; a model judged early does not know ``--dtype`` yet."""
    import torch

    asked = str(args.dtype).lower().removeprefix("torch.")
    return model.dtype if asked == "auto" else getattr(torch, asked)


def float32_on_a_gpu(args: Any, model: Any) -> str:
    import torch

    # Only asked for: SGLang runs a checkpoint of float32 weights in float16.
    return f"--dtype {args.dtype}" if args.device == "cuda" and model_dtype(args, model) == torch.float32 else ""


def kv_cache_of_another_dtype(args: Any, model: Any) -> str:
    """On a CPU SGLang converts what it reads."""
    import torch

    if args.device != "cuda" or args.kv_cache_dtype not in ("bfloat16", "bf16"):
        return ""
    dtype = model_dtype(args, model)
    name = str(dtype).removeprefix("torch.")
    return "" if dtype == torch.bfloat16 else f"--kv-cache-dtype {args.kv_cache_dtype} with a {name} model"


def old_flashinfer(args: Any, _model: Any) -> str:
    import torch

    if args.device != "cuda" or not torch.cuda.is_available():
        return ""
    problem = versions.package_problem("flashinfer-python")
    return f"flashinfer-python {problem}" if problem else ""


def uneven_heads(args: Any, model: Any) -> str:
    """SGLang's own answer, where it has one, is an assertion without a message once the model is being built."""
    groups = ranks.attention_groups(args)
    asked = f"--tp-size {args.tp_size}" + (f" in {groups} attention groups" if groups > 1 else "")
    if args.tp_size % groups:
        return asked
    on_cpu = args.device == "cpu"  # there SGLang makes head counts multiples of the TP size, whatever the groups are
    sharing = args.tp_size if on_cpu else args.tp_size // groups
    if sharing == 1:
        return ""
    heads, kv_heads = model.num_attention_heads, model.get_total_num_kv_heads()
    allowed = [count for count in range(1, heads + 1) if _share_evenly(count, heads, kv_heads, replicate=not on_cpu)]
    if sharing in allowed:
        return ""
    counts = ", ".join(map(str, allowed))
    return f"{asked} ({heads} query and {kv_heads} KV heads can be shared by {counts} ranks, not by {sharing})"


def _share_evenly(ranks: int, heads: int, kv_heads: int, *, replicate: bool) -> bool:
    """Whether every rank gets as many heads; ``replicate``: several ranks may hold the same KV head."""
    return heads % ranks == 0 and (kv_heads % ranks == 0 or (replicate and ranks % kv_heads == 0))


def lossless_windows(args: Any, model: Any) -> str:
    found = of_model(lambda model: bool(windowed_layers(model)))(args, model) if asks_for_lossless(args) else ""
    return found and f"--speculative-algorithm {LOSSLESS} with {found}"


def drafts_variable(_args: Any, _model: Any) -> str:
    drafts = os.environ.get(ENV_DRAFTS) or "auto"
    return "" if drafts in ("auto", "always") else f"{ENV_DRAFTS}={drafts}"


def other_backend(args: Any, _model: Any) -> str:
    prefill, decode = attention_backends(args)
    other = next((name for name in (decode, prefill) if name != BACKEND), BACKEND)
    return "" if other == BACKEND else f"the attention backend {other or 'of SGLang'}"


def width(args: Any, _model: Any) -> str:
    width = args.speculative_num_draft_tokens
    return "" if width is None or width in WIDTHS else f"--speculative-num-draft-tokens {width}"


def width_by_token(args: Any, _model: Any) -> str:
    width, page = args.speculative_num_draft_tokens or DEFAULT_WIDTH, args.page_size or 1
    return f"--speculative-num-draft-tokens {width} with --page-size 1" if width > WIDEST_BY_TOKEN and page == 1 else ""


def other_steps(args: Any, _model: Any) -> str:
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


def other_options(args: Any, model: Any) -> str:
    found = (flag(name, off)(args, model) for name, off in _OTHERS.items())
    return next((text for text in found if text), "")


def dp_attention(args: Any, _model: Any) -> str:
    return "DP attention" if ranks.attention_groups(args) > 1 else ""
