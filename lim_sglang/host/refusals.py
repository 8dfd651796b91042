"""What ``lim`` refuses, each with its reason and a way out. A refusal comes at start, before weights are loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lim_sglang.host import compat, ranks, versions
from lim_sglang.host.model import gives_windows, has_attention_of_its_own, has_linear_attention, is_mha

BACKEND = "lim"
LOSSLESS = "LIM"
"""The speculative algorithm of the lossless mode."""
DENSE = "use SGLang's own attention backend (leave out --attention-backend lim)"
KV_DTYPES = {"cpu": ("auto", "bfloat16", "bf16"), "cuda": ("auto", "bfloat16", "bf16", "fp8_e4m3")}


class UnsupportedError(ValueError):
    """A launch option or model that ``lim`` cannot serve; the message is one line: what, why, way out."""


@dataclass(frozen=True)
class Refusal:
    """One thing that is refused.

    Attributes:
        feature: Its name, as the README's table lists it.
        found: Returns what was found, as the user would recognise it, or an empty string. Arguments: launch
            options in effect, SGLang's model config.
        reason: Why it is refused.
        way_out: What to do instead.
    """

    feature: str
    found: Callable[[Any, Any], str]
    reason: str
    way_out: str


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


def flag(name: str, off: tuple[Any, ...] = (None, False)) -> Callable[[Any, Any], str]:
    """Finds launch option ``name`` set to anything but the values in ``off``."""

    def found(args: Any, _model: Any) -> str:
        value = getattr(args, name)
        flag = "--" + name.replace("_", "-")
        return "" if value in off else flag if value is True else f"{flag} {value}"

    return found


def on_device(device: str, found: Callable[[Any, Any], str]) -> Callable[[Any, Any], str]:
    """Looks for something on one kind of device only."""
    return lambda args, model: found(args, model) if args.device == device else ""


def _model(is_refused: Callable[[Any], bool]) -> Callable[[Any, Any], str]:
    """Finds a property of the model; what the user recognises is its architecture."""
    return lambda _args, model: f"the model ({model.hf_config.architectures[0]})" if is_refused(model) else ""


def _prefill_only(args: Any, _model: Any) -> str:
    prefill, decode = attention_backends(args)
    return f"--decode-attention-backend {decode}" if prefill == BACKEND != decode else ""


def _pages(args: Any, model: Any) -> str:
    return flag("page_size", (None, 1))(args, model) if compat.pages_need_triton() else ""


def _other_speculation(args: Any, model: Any) -> str:
    found = flag("speculative_algorithm")(args, model)
    return "" if found.upper().endswith(f" {LOSSLESS}") else found


def _without_decode(args: Any, _model: Any) -> str:
    if args.disaggregation_mode == "prefill":
        return "--disaggregation-mode prefill"
    return "--encoder-only" if args.encoder_only else ""


def _without_generation(args: Any, model: Any) -> str:
    if model.is_generation and not args.is_embedding:
        return ""
    return f"the model ({model.hf_config.architectures[0]})" + (" with --is-embedding" if args.is_embedding else "")


def _device(args: Any, _model: Any) -> str:
    if args.device not in (None, "cpu", "cuda"):
        return f"--device {args.device}"
    import torch

    return "an AMD GPU" if args.device == "cuda" and torch.version.hip else ""  # SGLang calls it cuda as well


def _kv_cache_dtype(args: Any, _model: Any) -> str:
    allowed = KV_DTYPES.get(args.device, KV_DTYPES["cuda"])
    return "" if args.kv_cache_dtype in allowed else f"--kv-cache-dtype {args.kv_cache_dtype}"


def _model_dtype(args: Any, model: Any) -> Any:
    """The torch dtype that the model will run in; a model judged early does not know ``--dtype`` yet."""
    import torch

    asked = str(args.dtype).lower().removeprefix("torch.")
    return model.dtype if asked == "auto" else getattr(torch, asked)


def _float32_on_a_gpu(args: Any, model: Any) -> str:
    import torch

    # Only asked for: SGLang runs a checkpoint of float32 weights in float16.
    return f"--dtype {args.dtype}" if args.device == "cuda" and _model_dtype(args, model) == torch.float32 else ""


def _kv_cache_of_another_dtype(args: Any, model: Any) -> str:
    """On a CPU SGLang converts what it reads."""
    import torch

    if args.device != "cuda" or args.kv_cache_dtype not in ("bfloat16", "bf16"):
        return ""
    dtype = _model_dtype(args, model)
    name = str(dtype).removeprefix("torch.")
    return "" if dtype == torch.bfloat16 else f"--kv-cache-dtype {args.kv_cache_dtype} with a {name} model"


def _flashinfer(args: Any, _model: Any) -> str:
    import torch

    if args.device != "cuda" or not torch.cuda.is_available():
        return ""
    problem = versions.package_problem("flashinfer-python")
    return f"flashinfer-python {problem}" if problem else ""


def _uneven_heads(args: Any, model: Any) -> str:
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


def has_no_effect(window: int, context: int) -> bool:
    """Whether a sliding window of ``window`` tokens, the current one included, drops none of ``context`` tokens."""
    return window >= context


def _sliding_window(_args: Any, model: Any) -> str:
    """What the config tells of windows that SGLang applies; others show once weights are loaded."""
    name = f"the model ({model.hf_config.architectures[0]})"
    if model.is_hybrid_swa:
        return name
    window = model.sliding_window_size
    kinds = getattr(model.hf_text_config, "layer_types", None)
    windowed = window and (kinds is None or "sliding_attention" in kinds)
    if not windowed or has_no_effect(window, model.context_len) or not gives_windows(model):
        return ""
    return name


REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        "lim for prefill only",
        _prefill_only,
        "lim makes decode sparse and leaves prefill dense, so it would do nothing",
        "use --decode-attention-backend lim",
    ),
    Refusal(
        "servers that only prefill or encode",
        _without_decode,
        "lim makes decode sparse, and such a server decodes nothing",
        "use SGLang's own attention backend there, and lim on the server that decodes",
    ),
    Refusal(
        "embedding, reward and classification models",
        _without_generation,
        "lim makes decode sparse, and nothing is decoded",
        DENSE,
    ),
    Refusal(
        "devices other than NVIDIA GPUs and CPUs",
        _device,
        "there is no lim backend for this device",
        "use an NVIDIA GPU or --device cpu, or SGLang's own attention backend",
    ),
    Refusal(
        f"speculative decoding other than {LOSSLESS}",
        _other_speculation,
        "several query tokens are verified at once, and a token set is defined for one",
        f"leave out --speculative-algorithm, or use {LOSSLESS}, where lim drafts and dense attention verifies",
    ),
    Refusal(
        "MLA and state-space models",
        _model(lambda model: not is_mha(model)),
        "the cache holds latents or states, not keys by head, so heads cannot rank tokens",
        DENSE,
    ),
    Refusal(
        "attention sinks as weights (gpt-oss)",
        _model(lambda model: bool(model.has_attention_sinks)),
        "the learned sink logits are not part of the sparse layers",
        DENSE,
    ),
    Refusal(
        "sliding-window and hybrid-window models",
        _sliding_window,
        "the window already drops tokens that a set could name",
        DENSE,
    ),
    Refusal(
        "linear-attention and Mamba hybrids",
        _model(has_linear_attention),
        "their layers are not all attention over a KV cache",
        DENSE,
    ),
    Refusal(
        "models whose layers attend several times",
        _model(lambda model: not model.is_encoder_decoder and model.num_attention_layers != model.num_hidden_layers),
        "the layer plan gives every layer one role, and a set is defined for one pass",
        DENSE,
    ),
    Refusal(
        "models with an attention of their own",
        _model(has_attention_of_its_own),
        "SGLang gives some of its layers to a backend made for this model",
        DENSE,
    ),
    Refusal(
        "encoder-decoder models",
        _model(lambda model: bool(model.is_encoder_decoder)),
        "cross-attention has a second cache that no set is defined for",
        DENSE,
    ),
    Refusal(
        "KV cache dtypes other than auto, bfloat16 and, on a GPU, fp8_e4m3",
        _kv_cache_dtype,
        "keys are scored in bfloat16, float16 or fp8_e4m3, on a CPU in the model's own dtype",
        "leave out --kv-cache-dtype",
    ),
    Refusal(
        "float32 models on a GPU",
        _float32_on_a_gpu,
        "FlashInfer has no kernels for float32",
        "use --dtype bfloat16",
    ),
    Refusal(
        "a bfloat16 KV cache under a model of another dtype, on a GPU",
        _kv_cache_of_another_dtype,
        "queries and keys are multiplied in one dtype",
        "leave out --kv-cache-dtype, or use --dtype bfloat16",
    ),
    Refusal(
        "a FlashInfer older than the one SGLang asks for, or none, on a GPU",
        _flashinfer,
        "lim attends with it",
        "install the versions that SGLang pins; `lim-sglang doctor` says how",
    ),
    Refusal(
        "deterministic inference",
        flag("enable_deterministic_inference"),
        "that a request's output does not depend on its batch has not been shown for the sparse layers yet",
        "leave out --enable-deterministic-inference",
    ),
    Refusal(
        "torch.compile",
        flag("enable_torch_compile"),
        "the step's host planning would be traced away",
        "leave out --enable-torch-compile",
    ),
    Refusal(
        "two-batch overlap",
        flag("enable_two_batch_overlap"),
        "two micro-batches would share one token set",
        "leave out --enable-two-batch-overlap",
    ),
    Refusal(
        "PD multiplexing",
        lambda args, _model: "--enable-pdmux" if compat.has_pdmux(args) else "",
        "it builds the backend several times, and only one would be counted",
        "leave out --enable-pdmux",
    ),
    Refusal("decode context parallelism", flag("dcp_size", (None, 1)), "no rank holds all keys", "use --dcp-size 1"),
    Refusal(
        "attention context parallelism",
        flag("attn_cp_size", (None, 1)),
        "no rank holds all keys",
        "use --attn-cp-size 1",
    ),
    Refusal(
        "tensor parallelism that does not share the heads evenly",
        _uneven_heads,
        "SGLang gives every rank as many heads; on a CPU it adds empty ones, and they would rank tokens as well",
        "choose another --tp-size",
    ),
    Refusal(
        "diffusion LLMs",
        flag("dllm_algorithm"),
        "several query tokens are decoded at once",
        "leave out --dllm-algorithm",
    ),
    Refusal(
        "HiSparse", flag("enable_hisparse"), "it selects tokens itself", "leave out one of --enable-hisparse and lim"
    ),
    Refusal(
        "page-major KV layout",
        flag("enable_page_major_kv_layout"),
        "tokens are not single rows of the cache",
        "leave out --enable-page-major-kv-layout",
    ),
    Refusal(
        "a CPU without the CPU host",
        lambda args, _model: "--device cpu" if args.device == "cpu" and not serves_on_cpu() else "",
        "a process that may use a GPU has no stand-ins for SGLang's GPU kernels",
        "leave out --device cpu, or set CUDA_VISIBLE_DEVICES= and run `python -m lim_cpu_host enable`",
    ),
    Refusal(
        "pages of more than one token on a CPU",
        on_device("cpu", _pages),
        "this SGLang allocates them by Triton kernels, which need a GPU",
        "leave out --page-size",
    ),
    Refusal(
        "LoRA on a CPU",
        on_device("cpu", flag("enable_lora")),
        "SGLang pins memory for it, which needs a GPU",
        "leave out --enable-lora",
    ),
    Refusal(
        "hierarchical cache on a CPU",
        on_device("cpu", flag("enable_hierarchical_cache")),
        "SGLang copies between two memories and asks CUDA for one of them",
        "leave out --enable-hierarchical-cache",
    ),
)


def check_supported(args: Any, model: Any, refusals: tuple[Refusal, ...] = REFUSALS) -> None:
    """Refuse the first thing that ``lim`` cannot serve.

    Args:
        args: launch options in effect (``compat.effective_args``), or the parsed command line, where ``device``
            may still be None.
        model: SGLang's ``ModelConfig``.
        refusals: What is looked for.

    Raises:
        UnsupportedError: one line with what was found, the reason and a way out.
    """
    for refusal in refusals:
        found = refusal.found(args, model)
        if found:
            raise UnsupportedError(f"{found} does not work with lim: {refusal.reason}; {refusal.way_out}")
