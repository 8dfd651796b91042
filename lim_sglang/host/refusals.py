"""What ``lim`` and its lossless mode refuse, each with its reason and a way out, before weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lim_sglang.config import ENV_DRAFTS
from lim_sglang.host import compat, finders
from lim_sglang.host.finders import BACKEND, DEFAULT_WIDTH, LOSSLESS, WIDEST_BY_TOKEN, WIDTHS, Finder, flag, on_device
from lim_sglang.host.model import has_attention_of_its_own, has_other_linear_attention, is_mha, windowed_layers

DENSE = "use SGLang's own attention backend (leave out --attention-backend lim)"


class UnsupportedError(ValueError):
    """A launch option or model that ``lim`` cannot serve; the message is one line: what, why, way out."""


@dataclass(frozen=True)
class Refusal:
    """One thing that is refused.

    Attributes:
        feature: its name, as the page of what is supported lists it.
        found: returns what was found, as the user would recognise it, or an empty string.
        reason: why it is refused.
        way_out: what to do instead.
        mode: ``BACKEND`` where it holds for the backend, lossless or not; ``LOSSLESS`` for that mode alone.
    """

    feature: str
    found: Finder
    reason: str
    way_out: str
    mode: str = BACKEND


_UNTRIED = "drafts have not been shown to leave its state alone"
REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        "lim for prefill only",
        finders.prefill_only,
        "lim makes decode sparse and leaves prefill dense, so it would do nothing",
        "use --decode-attention-backend lim",
    ),
    Refusal(
        "servers that only prefill or encode",
        finders.without_decode,
        "lim makes decode sparse, and such a server decodes nothing",
        "use SGLang's own attention backend there, and lim on the server that decodes",
    ),
    Refusal(
        "embedding, reward and classification models",
        finders.without_generation,
        "lim makes decode sparse, and nothing is decoded",
        DENSE,
    ),
    Refusal(
        "devices other than NVIDIA GPUs and CPUs",
        finders.other_device,
        "there is no lim backend for this device",
        "use an NVIDIA GPU or --device cpu, or SGLang's own attention backend",
    ),
    Refusal(
        f"speculative decoding other than {LOSSLESS}",
        finders.other_speculation,
        "several query tokens are verified at once, and a token set is defined for one",
        f"leave out --speculative-algorithm, or use {LOSSLESS}, where lim drafts and dense attention verifies",
    ),
    Refusal(
        "MLA and state-space models",
        finders.of_model(lambda model: not is_mha(model)),
        "the cache holds latents or states, not keys by head, so heads cannot rank tokens",
        DENSE,
    ),
    Refusal(
        "attention sinks as weights (gpt-oss)",
        finders.of_model(lambda model: bool(model.has_attention_sinks)),
        "the learned sink logits are not part of the sparse layers",
        DENSE,
    ),
    Refusal(
        "models with a sliding window in every layer",
        finders.of_model(lambda model: len(windowed_layers(model)) == model.num_hidden_layers),
        "the window already drops tokens that a set could name, and no layer attends to all",
        DENSE,
    ),
    Refusal(
        "chunked attention (Llama 4)",
        finders.of_model(lambda model: bool(model.attention_chunk_size)),
        "its layers attend within chunks, which is no window that SGLang gives to layers",
        DENSE,
    ),
    Refusal(
        "models with an attention of their own",
        finders.of_model(has_attention_of_its_own),
        "SGLang gives some of its layers to a backend made for this model",
        DENSE,
    ),
    Refusal(
        "Mamba, KDA, lightning and short-convolution hybrids",
        finders.of_model(has_other_linear_attention),
        "their layers are not all attention over a KV cache, and of those hybrids gated delta nets alone were tried",
        DENSE,
    ),
    Refusal(
        "hybrids with gated delta nets on a GPU of the Blackwell generation",
        on_device("cuda", finders.gated_delta_net_on_blackwell),
        "SGLang has a list of backends for them there, and lim has not been run with them",
        DENSE,
    ),
    Refusal(
        "the lossless mode of hybrids with gated delta nets",
        finders.lossless_gated_delta_net,
        "a draft advances the states of their linear layers, which would have to be rolled back",
        "leave out --speculative-algorithm, or use NEXTN, the checkpoint's own, without lim",
    ),
    Refusal(
        "the lossless mode of models with sliding windows",
        finders.lossless_windows,
        "SGLang verifies within a window by a plan of its own, and lim's verification has none",
        "leave out --speculative-algorithm",
    ),
    Refusal(
        "models whose layers attend several times",
        finders.of_model(
            lambda model: not model.is_encoder_decoder and model.num_attention_layers != model.num_hidden_layers
        ),
        "the layer plan gives every layer one role, and a set is defined for one pass",
        DENSE,
    ),
    Refusal(
        "encoder-decoder models",
        finders.of_model(lambda model: bool(model.is_encoder_decoder)),
        "cross-attention has a second cache that no set is defined for",
        DENSE,
    ),
    Refusal(
        "KV cache dtypes other than auto, bfloat16 and, on a GPU, fp8_e4m3",
        finders.kv_cache_dtype,
        "keys are scored in bfloat16, float16 or fp8_e4m3, on a CPU in the model's own dtype",
        "leave out --kv-cache-dtype",
    ),
    Refusal(
        "float32 models on a GPU",
        finders.float32_on_a_gpu,
        "FlashInfer has no kernels for float32",
        "use --dtype bfloat16",
    ),
    Refusal(
        "a bfloat16 KV cache under a model of another dtype, on a GPU",
        finders.kv_cache_of_another_dtype,
        "queries and keys are multiplied in one dtype",
        "leave out --kv-cache-dtype, or use --dtype bfloat16",
    ),
    Refusal(
        "a FlashInfer older than the one SGLang asks for, or none, on a GPU",
        finders.old_flashinfer,
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
        finders.uneven_heads,
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
        lambda args, _model: "--device cpu" if args.device == "cpu" and not finders.serves_on_cpu() else "",
        "a process that may use a GPU has no stand-ins for SGLang's GPU kernels",
        "leave out --device cpu, or set CUDA_VISIBLE_DEVICES= and run `python -m lim_cpu_host enable`",
    ),
    Refusal(
        "pages of more than one token on a CPU",
        on_device("cpu", finders.pages_on_cpu),
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
    Refusal(
        f"values of {ENV_DRAFTS} other than auto and always",
        finders.drafts_variable,
        "it says whether as many drafts are made as pay by measured costs, or as many as there may be",
        f"use {ENV_DRAFTS}=auto, {ENV_DRAFTS}=always or nothing",
        LOSSLESS,
    ),
    Refusal(
        "another attention backend",
        finders.other_backend,
        f"{BACKEND} drafts, and dense attention of the same backend verifies",
        f"add --attention-backend {BACKEND}, for prefill and decode",
        LOSSLESS,
    ),
    Refusal(
        "widths of a verification below 2 and above 16",
        finders.width,
        "a round verifies the last token and 1 to 15 drafts",
        f"use {WIDTHS[0]} to {WIDTHS[-1]}, or leave it out for {DEFAULT_WIDTH}",
        LOSSLESS,
    ),
    Refusal(
        f"widths above {WIDEST_BY_TOKEN} with pages of one token",
        finders.width_by_token,
        "SGLang reserves slots for two rounds, which the last ones of a context would take from another request",
        f"use {WIDTHS[0]} to {WIDEST_BY_TOKEN}, or a larger --page-size",
        LOSSLESS,
    ),
    Refusal(
        "another number of draft steps",
        finders.other_steps,
        "every draft takes one step, so the steps are --speculative-num-draft-tokens less one",
        "leave out --speculative-num-steps",
        LOSSLESS,
    ),
    Refusal(
        "options of other speculative algorithms",
        finders.other_options,
        f"{LOSSLESS} drafts a chain with the model itself and accepts exactly",
        "leave it out",
        LOSSLESS,
    ),
    Refusal(
        "pipeline parallelism", flag("pp_size", (None, 1)), "no stage holds all layers", "use --pp-size 1", LOSSLESS
    ),
    Refusal(
        "DP attention", finders.dp_attention, "idle ranks have not been shown to keep step", "leave it out", LOSSLESS
    ),
    Refusal(
        "LoRA", flag("enable_lora"), "SGLang keeps adapters and speculation apart", "leave out --enable-lora", LOSSLESS
    ),
    Refusal(
        "mixed prefill and decode",
        flag("enable_mixed_chunk"),
        "a verification has as many tokens for every request",
        "leave out --enable-mixed-chunk",
        LOSSLESS,
    ),
    Refusal(
        "hidden states in answers",
        flag("enable_return_hidden_states"),
        _UNTRIED,
        "leave out --enable-return-hidden-states",
        LOSSLESS,
    ),
    Refusal(
        "hierarchical cache",
        flag("enable_hierarchical_cache"),
        _UNTRIED,
        "leave out --enable-hierarchical-cache",
        LOSSLESS,
    ),
    Refusal(
        "disaggregated prefill",
        flag("disaggregation_mode", (None, "null")),
        _UNTRIED,
        "leave out --disaggregation-mode",
        LOSSLESS,
    ),
)


def check_supported(args: Any, model: Any) -> None:
    """Refuse the first thing that ``lim`` cannot serve.

    Args:
        args: launch options in effect (``compat.effective_args``), or the parsed command line, where ``device``
            may still be None.
        model: SGLang's ``ModelConfig``.

    Raises:
        UnsupportedError: one line with what was found, the reason and a way out.
    """
    _check(BACKEND, args, model)


def check_lossless(args: Any) -> None:
    """Refuse the first thing that the lossless mode cannot serve, where it is asked for; no model is needed for that.

    Raises:
        UnsupportedError: as of ``check_supported``.
    """
    if finders.asks_for_lossless(args):
        _check(LOSSLESS, args, None)


def _check(mode: str, args: Any, model: Any) -> None:
    for refusal in REFUSALS:
        found = refusal.found(args, model) if refusal.mode == mode else ""
        if found:
            raise UnsupportedError(f"{found} does not work with lim: {refusal.reason}; {refusal.way_out}")
