"""Every SGLang name this project relies on, and the few places where the tested versions differ.

Private names are used here, in ``lim_patches`` and by the backends in ``attention``, which subclass SGLang's; only this
module branches on a version.
"""

from __future__ import annotations

import errno
import logging
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lim_sglang.host.host_check import HostName, Verdict, check

logger = logging.getLogger(__name__)

TESTED_SGLANG = ("0.5.16", "0.5.23")
"""First and last SGLang release that the test suite runs on; outside it the plugin warns and still loads."""

_SRT = "sglang.srt"
_BACKEND = f"{_SRT}.layers.attention.torch_native_backend"
_LAYER = f"{_SRT}.layers.radix_attention"
_POOL = f"{_SRT}.mem_cache.memory_pool"
_GRAMMAR = f"{_SRT}.constrained.xgrammar_backend"

PLUGIN_NAMES: tuple[HostName, ...] = (
    HostName(f"{_SRT}.plugins.hook_registry", "HookRegistry.register", ("target", "hook", "hook_type"), "all patches"),
    HostName(f"{_SRT}.plugins.hook_registry", "HookRegistry._patched", (), "knowing that the patches took"),
    HostName(f"{_SRT}.layers.attention.attention_registry", "register_attention_backend", ("name",), "the backend"),
    HostName(f"{_SRT}.server_args", "add_attention_backend_choices", ("choices",), "--attention-backend lim"),
    HostName(f"{_SRT}.server_args", "ATTENTION_BACKEND_CHOICES", (), "--attention-backend lim"),
    HostName(f"{_SRT}.server_args", "ServerArgs.add_cli_args", ("parser",), "--lim-* flags"),
    HostName(f"{_SRT}.server_args", "ServerArgs.from_cli_args", ("args",), "--lim-* flags"),
    HostName(f"{_SRT}.server_args", "ServerArgs.check_server_args", ("self",), "early refusals"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.from_server_args", ("server_args",), "early refusals"),
    HostName(
        f"{_SRT}.configs.model_config",
        "ModelConfig.__init__",
        ("model_path", "trust_remote_code", "revision", "model_override_args"),
        "early refusals",
    ),
    HostName(f"{_SRT}.configs.model_config", "AttentionArch.MHA", (), "refusing MLA"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.is_hybrid_swa", (), "refusing sliding windows"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.sliding_window_size", (), "refusing sliding windows"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.is_encoder_decoder", (), "refusing encoder-decoders"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.has_attention_sinks", (), "refusing attention sinks"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.num_hidden_layers", (), "the layer plan"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.num_attention_heads", (), "the largest budget on a GPU"),
    HostName(f"{_SRT}.configs.model_config", "ModelConfig.num_key_value_heads", (), "the layer plan's presets"),
    HostName(f"{_SRT}.configs.hybrid_arch", "mambaish_config", ("model_config",), "refusing linear attention"),
    HostName(f"{_SRT}.distributed.utils", "get_pp_indices", ("num_hidden_layers", "pp_rank", "pp_size"), "PP stages"),
    HostName(f"{_SRT}.managers.scheduler", "Scheduler.get_internal_state", ("recv_req",), "/server_info"),
    HostName(f"{_SRT}.utils.common", "support_triton", ("backend",), "serving without a GPU"),
    HostName(_GRAMMAR, "XGrammarGrammar.apply_vocab_mask", ("logits", "vocab_mask"), "grammars without a GPU"),
    HostName(_GRAMMAR, "XGrammarGrammarBackend.apply_vocab_mask", ("logits", "vocab_mask"), "grammars without a GPU"),
)

TORCH_NATIVE_NAMES: tuple[HostName, ...] = (
    HostName(_BACKEND, "TorchNativeAttnBackend.__init__", ("model_runner",), "the CPU backend"),
    HostName(_BACKEND, "TorchNativeAttnBackend.init_forward_metadata", ("forward_batch",), "the CPU backend"),
    HostName(
        _BACKEND,
        "TorchNativeAttnBackend.forward_decode",
        ("q", "k", "v", "layer", "forward_batch", "save_kv_cache"),
        "dense and select layers",
    ),
    HostName(
        _BACKEND,
        "TorchNativeAttnBackend._run_sdpa_forward_decode",
        ("query", "output", "k_cache", "v_cache", "req_to_token", "req_pool_indices", "seq_lens", "scaling"),
        "sparse layers",
    ),
    HostName(_BACKEND, "TorchNativeAttnBackend.token_to_kv_pool", (), "the KV cache"),
    HostName(_BACKEND, "TorchNativeAttnBackend.req_to_token_pool", (), "the KV cache"),
    HostName(_BACKEND, "TorchNativeAttnBackend.swa_out_cache_loc", (), "the KV cache"),
    HostName(_POOL, "KVWriteLoc.loc", (), "the KV cache"),
    HostName(_POOL, "MHATokenToKVPool.set_kv_buffer", ("layer", "cache_k", "cache_v"), "the KV cache"),
    HostName(_POOL, "MHATokenToKVPool.get_key_buffer", ("layer_id",), "the KV cache"),
    HostName(_LAYER, "RadixAttention.tp_q_head_num", (), "head counts"),
    HostName(_LAYER, "RadixAttention.tp_k_head_num", (), "head counts"),
    HostName(_LAYER, "RadixAttention.qk_head_dim", (), "head sizes"),
    HostName(_LAYER, "RadixAttention.v_head_dim", (), "head sizes"),
    HostName(_LAYER, "RadixAttention.scaling", (), "the softmax scale"),
    HostName(_LAYER, "RadixAttention.layer_id", (), "the layer plan"),
)

_FLASHINFER = f"{_SRT}.layers.attention.flashinfer_backend"

FLASHINFER_NAMES: tuple[HostName, ...] = (
    HostName(_FLASHINFER, "FlashInferAttnBackend.__init__", ("model_runner", "init_new_workspace"), "the CUDA backend"),
    HostName(_FLASHINFER, "FlashInferAttnBackend.init_forward_metadata", ("forward_batch",), "steps without a graph"),
    HostName(
        _FLASHINFER,
        "FlashInferAttnBackend.init_forward_metadata_out_graph",
        ("forward_batch", "in_capture"),
        "captured steps",
    ),
    HostName(
        f"{_SRT}.layers.attention.base_attn_backend",
        "AttentionBackend.init_forward_metadata_in_graph",
        ("forward_batch",),
        "captured steps",
    ),
    HostName(
        _FLASHINFER,
        "FlashInferAttnBackend.forward_decode",
        ("q", "k", "v", "layer", "forward_batch", "save_kv_cache"),
        "decode",
    ),
    HostName(_FLASHINFER, "FlashInferAttnBackend._get_wrapper_idx", ("layer",), "sparse layers"),
    HostName(_FLASHINFER, "FlashInferAttnBackend.workspace_buffer", (), "sparse layers"),
    HostName(_FLASHINFER, "FlashInferAttnBackend.kv_last_page_len", (), "the largest batch"),
    HostName(_FLASHINFER, "FlashInferAttnBackend.max_context_len", (), "the longest request"),
    HostName(_FLASHINFER, "FlashInferAttnBackend.decode_split_tile_size", (), "deterministic inference"),
    HostName(_FLASHINFER, "FlashInferAttnBackend.disable_cuda_graph_kv_split", (), "deterministic inference"),
    HostName(_FLASHINFER, "FlashInferIndicesUpdaterDecode.num_qo_heads", (), "head counts"),
    HostName(_FLASHINFER, "FlashInferIndicesUpdaterDecode.q_data_type", (), "dtypes"),
    HostName(_FLASHINFER, "FlashInferIndicesUpdaterDecode.data_type", (), "dtypes"),
    HostName(_FLASHINFER, "DecodeMetadata.decode_wrappers", (), "the step's slots"),
)

HOST_NAMES = PLUGIN_NAMES + TORCH_NATIVE_NAMES + FLASHINFER_NAMES

SERVER_ARGS_FIELDS = (
    "attention_backend",
    "attn_cp_size",
    "dcp_size",
    "decode_attention_backend",
    "device",
    "dllm_algorithm",
    "enable_deterministic_inference",
    "enable_hisparse",
    "enable_page_major_kv_layout",
    "enable_torch_compile",
    "enable_two_batch_overlap",
    "host",
    "json_model_override_args",
    "kv_cache_dtype",
    "model_path",
    "page_size",
    "port",
    "pp_size",
    "prefill_attention_backend",
    "revision",
    "speculative_algorithm",
    "tp_size",
    "trust_remote_code",
)
"""Launch options this project reads; a missing one is a mismatch, never a silent default."""


def sglang_version() -> str | None:
    """The installed SGLang's version, or None."""
    try:
        return version("sglang")
    except PackageNotFoundError:
        return None


def is_tested(found: str) -> bool:
    """Whether ``found`` lies in the tested range (numeric parts only: ``0.5.16.post1`` counts as 0.5.16)."""
    return _numbers(TESTED_SGLANG[0]) <= _numbers(found) <= _numbers(TESTED_SGLANG[1])


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split("+")[0].split(".")
    return tuple(int(p) for p in parts[:3] if p.isdigit())


def check_host() -> list[Verdict]:
    """The verdict on every host name of this module; reads source files only, imports nothing of SGLang."""
    return check(HOST_NAMES)


def missing_fields(server_args_class: type) -> list[str]:
    """Those of ``SERVER_ARGS_FIELDS`` that this SGLang's ``ServerArgs`` does not declare."""
    declared = set(getattr(server_args_class, "__dataclass_fields__", ()))
    declared |= set(getattr(server_args_class, "__struct_fields__", ()))
    return [name for name in SERVER_ARGS_FIELDS if name not in declared]


def effective_args(server_args: Any) -> Any:
    """The launch options in effect: newer SGLang keeps the user's input apart from what it resolved it to."""
    try:
        from sglang.srt.arg_groups.model_override_base import resolving_view
    except ImportError:
        return server_args
    return resolving_view(server_args)


def attention_backends(args: Any) -> tuple[str | None, str | None]:
    """(prefill, decode) backend names that ``args`` select, None where SGLang is to choose."""
    return (
        args.prefill_attention_backend or args.attention_backend,
        args.decode_attention_backend or args.attention_backend,
    )


def model_config(server_args: Any) -> Any:
    """SGLang's ``ModelConfig`` for these launch options; reads the model's config files, not its weights."""
    from sglang.srt.configs.model_config import ModelConfig

    return ModelConfig.from_server_args(server_args)


def model_config_of_command_line(args: Any) -> Any | None:
    """The same from a parsed command line, or None where SGLang has to find the model first (a hub, a bucket).

    Raises:
        ValueError: the model is a local folder and its config cannot be read.
    """
    from sglang.srt.configs.model_config import ModelConfig

    try:
        return ModelConfig(
            model_path=args.model_path,
            trust_remote_code=args.trust_remote_code,
            revision=args.revision,
            model_override_args=args.json_model_override_args,
        )
    except Exception as error:  # transformers and SGLang raise anything from OSError to AttributeError here
        if Path(args.model_path).is_dir():
            raise ValueError(f"{type(error).__name__}: {error}") from error
        logger.debug("no config at %s yet: %s", args.model_path, error)
        return None


def serves_on_cpu() -> bool:
    """Whether SGLang will launch no Triton kernel for ``lim`` in this process: only the CPU host makes it so."""
    from sglang.srt.utils.common import support_triton

    return not support_triton("lim")


def is_mha(config: Any) -> bool:
    """Whether the model attends with plain multi-head (or grouped-query) attention, not MLA or a state space."""
    from sglang.srt.configs.model_config import AttentionArch

    return bool(config.attention_arch == AttentionArch.MHA)


def has_linear_attention(config: Any) -> bool:
    """Whether any layer is a Mamba, linear-attention or short-convolution layer."""
    from sglang.srt.configs.hybrid_arch import mambaish_config

    return mambaish_config(config) is not None


def pipeline_stages(num_hidden_layers: int, pp_size: int) -> list[tuple[int, int]]:
    """[start, end) layer numbers of every pipeline stage."""
    from sglang.srt.distributed.utils import get_pp_indices

    return [tuple(get_pp_indices(num_hidden_layers, rank, pp_size)) for rank in range(pp_size)]


def has_pdmux(args: Any) -> bool:
    """Whether PD multiplexing is asked for; SGLang 0.5.23 no longer has it."""
    return bool(getattr(args, "enable_pdmux", False))


def why_not_bound(host: str, port: int) -> str:
    """Why SGLang's HTTP server could not listen on ``host:port``, or an empty string; tried by binding as it will."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return "it is in use" if error.errno == errno.EADDRINUSE else str(error.strerror or error)
    return ""
