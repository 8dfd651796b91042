"""What SGLang's model config and its loaded model say about the layers."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from lim_sglang.host import compat
from lim_sglang.host.host_check import source_folder
from lim_sglang.layer_plan import GATED_DELTA_NETS

logger = logging.getLogger(__name__)


def model_config(server_args: Any) -> Any:
    """SGLang's ``ModelConfig`` for these launch options; reads the model's config files, not its weights."""
    from sglang.srt.configs.model_config import ModelConfig

    return ModelConfig.from_server_args(server_args)


def model_config_of_command_line(args: Any) -> Any | None:
    """The same from a parsed command line, or None where it is too early to judge the model.

    SGLang has to find the model first (a hub, a bucket), or it will not make a config of these options and says why.

    Raises:
        ValueError: the model is a local folder and its config cannot be read the way that SGLang will read it.
    """
    try:
        return model_config(args)
    except Exception as error:  # transformers and SGLang raise anything from OSError to AttributeError here
        logger.debug("no config at %s yet: %s", args.model_path, error)
    if Path(args.model_path).is_dir():
        _check_readable(args)
    return None


def _check_readable(args: Any) -> None:
    """Read a model folder's config by what decides how it is read, and nothing else.

    Raises:
        ValueError: it cannot be read.
    """
    from sglang.srt.configs.model_config import ModelConfig

    try:
        ModelConfig(
            model_path=args.model_path,
            trust_remote_code=args.trust_remote_code,
            revision=args.revision,
            model_override_args=args.json_model_override_args,
            override_config_file=args.decrypted_config_file,
            model_config_parser=args.model_config_parser,
        )
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def is_mha(config: Any) -> bool:
    """Whether the model attends with plain multi-head (or grouped-query) attention, not MLA or a state space."""
    from sglang.srt.configs.model_config import AttentionArch

    return bool(config.attention_arch == AttentionArch.MHA)


def is_gated_delta_net(config: Any) -> bool:
    """Whether the model is one of ``GATED_DELTA_NETS``, whose other layers attend."""
    from sglang.srt.configs.hybrid_arch import hybrid_gdn_config

    found = hybrid_gdn_config(config)
    return found is not None and found.model_type in GATED_DELTA_NETS


def has_other_linear_attention(config: Any) -> bool:
    """Whether any layer is a Mamba, short-convolution or linear-attention layer other than of ``GATED_DELTA_NETS``."""
    from sglang.srt.configs.hybrid_arch import mambaish_config

    return mambaish_config(config) is not None and not is_gated_delta_net(config)


def gives_windows(config: Any) -> bool:
    """Whether SGLang's own class for this model, or one that it builds on, gives layers a sliding window.

    Found in the classes' source, since importing a model takes seconds. Classes that are not found count as no.
    """
    folder = source_folder("sglang.srt.models")
    name = re.compile(rf"^EntryClass\b[^#]*\b{re.escape(config.hf_config.architectures[0])}\b", re.M)
    sources = (path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    own = next((text for text in sources if name.search(text)), "")
    bases = [folder / f"{base}.py" for base in re.findall(r"^from sglang\.srt\.models\.(\w+) import", own, re.M)]
    texts = [own, *(path.read_text(encoding="utf-8") for path in bases if path.is_file())]
    return any(re.search(r"\bsliding_window_size=", text) for text in texts)


def has_no_effect(window: int, context: int) -> bool:
    """Whether a sliding window of ``window`` tokens, the current one included, drops none of ``context`` tokens."""
    return window >= context


def windowed_layers(config: Any) -> list[int]:
    """The layers with a sliding window by the config, where SGLang applies it and it drops tokens.

    What layers say once they are loaded has the last word.
    """
    window, depth = config.sliding_window_size, config.num_hidden_layers
    if not window or has_no_effect(window, config.context_len):
        return []
    if config.is_hybrid_swa:
        return list(getattr(config, "swa_attention_layer_ids", range(depth)))
    kinds = getattr(config.hf_text_config, "layer_types", None) or ["sliding_attention"] * depth
    windowed = [layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"]
    return windowed if windowed and gives_windows(config) else []


def attending_layers(config: Any) -> list[int] | None:
    """The layers that attend to all keys and values by the config; None for all.

    Others do not in hybrids with gated delta nets, with a window, and in some blocks of a Nemotron-NAS model.
    """
    if is_gated_delta_net(config):
        return list(config.hf_text_config.full_attention_layer_ids)
    if windowed := windowed_layers(config):
        return [layer for layer in range(config.num_hidden_layers) if layer not in windowed]
    blocks = getattr(config.hf_text_config, "block_configs", None) or []
    attention = [getattr(block, "attention", None) for block in blocks]
    return [layer for layer, block in enumerate(attention) if not getattr(block, "no_op", False)] or None


def has_attention_of_its_own(config: Any) -> bool:
    """Whether SGLang gives this model's attention, or some of it, to a backend that nobody chose."""
    from sglang.srt.configs.model_config import is_minimax_sparse

    hf_config, text_config = config.hf_config, config.hf_text_config
    return bool(
        is_minimax_sparse(hf_config)
        or compat.is_qwen_sparse_attention(hf_config)
        or hasattr(text_config, "wrap_attention_backend")  # Dots 3, which 0.5.16 does not know
        or hf_config.model_type == "hrm_text"
        or "HrmTextForCausalLM" in hf_config.architectures
        or getattr(hf_config, "dual_chunk_attention_config", None)
    )


def attention_layers(model: Any) -> list[Any]:
    """The ``RadixAttention`` layers of a loaded model; vision towers and the like attend by other classes."""
    from sglang.srt.layers.radix_attention import RadixAttention

    modules = list(model.modules())
    # Models that run by Transformers keep them in a plain dict, where PyTorch does not see them.
    hidden = [vars(module).get("attention_instances") for module in modules]
    kept = [layer for layers in hidden if isinstance(layers, dict) for layer in layers.values()]
    return [module for module in (*modules, *kept) if isinstance(module, RadixAttention)]


def is_encoder_only(layer: Any) -> bool:
    """Whether a ``RadixAttention`` layer attends to later tokens as well, as encoders do."""
    from sglang.srt.layers.radix_attention import AttentionType

    return bool(layer.attn_type == AttentionType.ENCODER_ONLY)


def stage_of(runner: Any) -> tuple[int, int]:
    """[start, end) layer numbers that this process of SGLang runs."""
    return runner.layer_info.start_layer, runner.layer_info.end_layer


def pipeline_stages(num_hidden_layers: int, pp_size: int) -> list[tuple[int, int]]:
    """[start, end) layer numbers of every pipeline stage."""
    from sglang.srt.distributed.utils import get_pp_indices

    return [tuple(get_pp_indices(num_hidden_layers, rank, pp_size)) for rank in range(pp_size)]
