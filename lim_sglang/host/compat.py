"""What SGLang is asked for, and the few places where the tested versions differ; ``names`` lists what is relied on.

Private names are used here, in ``lim_patches`` and by the backends in ``attention``, which subclass SGLang's; only this
module branches on a version.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lim_sglang.host.host_check import HostName, Verdict, check, constant_calls, source_folder
from lim_sglang.host.names import HOST_NAMES, SERVER_ARGS_FIELDS

logger = logging.getLogger(__name__)

TESTED_SGLANG = {"cpu": ("0.5.16", "0.5.23"), "cuda": ("0.5.16", "0.5.23")}
"""The SGLang releases that the tests of this project ran on, by kind of device; the plugin loads on others, too."""


def sglang_version() -> str | None:
    """The installed SGLang's version, or None."""
    try:
        return version("sglang")
    except PackageNotFoundError:
        return None


def untested(found: str, device: str) -> str:
    """What was not tested with SGLang ``found`` on a ``device`` of this kind ("cpu", "cuda"); empty where it was.

    Three numbers count: ``0.5.16.post1`` is 0.5.16.
    """
    tested = [kind for kind, releases in TESTED_SGLANG.items() if _release(found) in map(_release, releases)]
    if device in tested:
        return ""
    where = {"cpu": "a CPU", "cuda": "a GPU"}
    doubt = f"untested on {where[device]} (tested there: {', '.join(TESTED_SGLANG[device])})"
    return f"tested on {where[tested[0]]} only; {doubt}" if tested else doubt


def supported_range() -> str:
    """From the first release that was tested anywhere to the last, as pip takes it: ``sglang>=A,<=B``."""
    releases = sorted({release for tested in TESTED_SGLANG.values() for release in tested}, key=_release)
    return f"sglang>={releases[0]},<={releases[-1]}"


def _release(text: str) -> tuple[int, ...]:
    parts = text.split("+")[0].split(".")
    return tuple(int(p) for p in parts[:3] if p.isdigit())


def check_host() -> list[Verdict]:
    """The verdict on every name that is relied on; reads source files only, imports nothing of SGLang."""
    return check(HOST_NAMES)


def lowest_versions() -> dict[str, str]:
    """The lowest version of each package that SGLang asks for on a GPU, read from its source.

    SGLang asks only where it attends with FlashInfer itself, and not at all where its own switch says so.
    """
    if os.environ.get("SGLANG_SKIP_SGL_KERNEL_VERSION_CHECK", "").lower() in ("1", "true"):
        return {}
    calls = constant_calls("sglang.srt.entrypoints.engine", "assert_pkg_version")
    return {str(package).replace("_", "-"): str(lowest) for package, lowest, *_ in calls}


def package_problem(package: str) -> str:
    """What is wrong with an installed package that a GPU needs, or an empty string.

    ``not installed``, or the version that is there and the one that SGLang asks for.
    """
    from packaging.version import Version  # one of SGLang's dependencies

    lowest = lowest_versions().get(package)
    asked = f" (SGLang asks for {lowest} or newer)" if lowest else ""
    try:
        found = version(package)
    except PackageNotFoundError:
        return f"not installed{asked}"
    return f"{found}{asked}" if lowest and Version(found) < Version(lowest) else ""


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


def serves_on_cpu() -> bool:
    """Whether SGLang will launch no Triton kernel for ``lim`` in this process: only the CPU host makes it so."""
    from sglang.srt.utils.common import support_triton

    return not support_triton("lim")


def pages_need_triton() -> bool:
    """Whether this SGLang allocates pages of several tokens by Triton kernels wherever it runs; newer ones do not."""
    return not check([HostName("sglang.srt.mem_cache.allocator.paged", "alloc_decode_naive")])[0].ok


def is_mha(config: Any) -> bool:
    """Whether the model attends with plain multi-head (or grouped-query) attention, not MLA or a state space."""
    from sglang.srt.configs.model_config import AttentionArch

    return bool(config.attention_arch == AttentionArch.MHA)


def has_linear_attention(config: Any) -> bool:
    """Whether any layer is a Mamba, linear-attention or short-convolution layer."""
    from sglang.srt.configs.hybrid_arch import mambaish_config

    return mambaish_config(config) is not None


def gives_windows(config: Any) -> bool:
    """Whether SGLang's own class for this model tells the attention backend of a sliding window.

    Found in the class's source, since importing a model takes seconds. Classes that are not found count as no.
    """
    name = re.compile(rf"^EntryClass\b[^#]*\b{re.escape(config.hf_config.architectures[0])}\b", re.M)
    sources = (path.read_text(encoding="utf-8") for path in source_folder("sglang.srt.models").glob("*.py"))
    own = next((text for text in sources if name.search(text)), "")
    return "def get_attention_sliding_window_size" in own


def layers_without_attention(config: Any) -> list[int]:
    """The layers that the config says do not attend (the blocks of a Nemotron-NAS model)."""
    blocks = getattr(config.hf_text_config, "block_configs", None) or []
    attention = [getattr(block, "attention", None) for block in blocks]
    return [layer for layer, block in enumerate(attention) if getattr(block, "no_op", False)]


def has_attention_of_its_own(config: Any) -> bool:
    """Whether SGLang gives this model's attention, or some of it, to a backend that nobody chose."""
    from sglang.srt.configs.model_config import is_minimax_sparse

    hf_config, text_config = config.hf_config, config.hf_text_config
    return bool(
        is_minimax_sparse(hf_config)
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

    def all_gather(out: Any, own: Any) -> None:
        if own.is_cuda:
            group.all_gather_into_tensor(out.flatten(0, 1), own)
        else:  # SGLang 0.5.16 has no such operation on a CPU
            torch.distributed.all_gather(list(out), own, group=group.cpu_group)

    return group.world_size, group.rank_in_group, all_gather


def is_first_rank() -> bool:
    """Whether this process is TP rank 0 of its replica and pipeline stage: what all ranks would say is its to say."""
    return _is_at_rank_zero("tp_rank")


def counts_for_its_group() -> bool:
    """Whether this process is the first of those that attend to the same requests, as SGLang's own metrics ask."""
    return _is_at_rank_zero("attn_tp_rank", "attn_cp_rank")


def _is_at_rank_zero(*ranks: str) -> bool:
    from sglang.srt.distributed import model_parallel_is_initialized
    from sglang.srt.runtime_context import get_parallel

    return not model_parallel_is_initialized() or not any(getattr(get_parallel(), rank) for rank in ranks)


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


def agreed(value: Any) -> Any:
    """What the first of the ranks that run the same steps says; every one of them calls this."""
    from sglang.srt.distributed import get_tp_group, model_parallel_is_initialized

    return get_tp_group().broadcast_object(value) if model_parallel_is_initialized() else value


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


def has_pdmux(args: Any) -> bool:
    """Whether PD multiplexing is asked for; SGLang 0.5.23 no longer has it."""
    return bool(getattr(args, "enable_pdmux", False))
