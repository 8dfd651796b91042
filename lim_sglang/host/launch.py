"""From launch options to one configuration and layer plan, and everything that is judged before SGLang starts."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lim_kernels.select.budget import check_device_limits
from lim_sglang.config import (
    ENV_CONFIG,
    ENV_DRAFTS,
    FLAGS,
    MODEL_CONFIG_KEY,
    LimConfig,
    LimConfigError,
    parse_config_json,
    parse_flag_values,
    resolve_config,
)
from lim_sglang.errors import exit_with
from lim_sglang.host import compat
from lim_sglang.host.finders import BACKEND, asks_for_lossless, attention_backends
from lim_sglang.host.model import attending_layers, model_config, model_config_of_command_line, pipeline_stages
from lim_sglang.host.ports import why_not_bound
from lim_sglang.host.refusals import DENSE, UnsupportedError, check_lossless, check_supported
from lim_sglang.layer_plan import RULE, LayerPlan, rule_warning, select_layers_for_model

logger = logging.getLogger(__name__)

FLAGS_ATTRIBUTE = "_lim_flags"
"""Where the values of the ``--lim-*`` flags travel on SGLang's ``ServerArgs`` (set only by the command line)."""


def check_command_line(args: Namespace) -> dict[str, Any]:
    """Judge everything that a command line and a model's config files tell; exit with one line if it cannot work.

    This comes before SGLang resolves its options: for some models its own assertions would come first.

    Returns:
        The values of the ``--lim-*`` flags, by configuration key.
    """
    try:
        flags = parse_flag_values({key: getattr(args, f"lim_{key}", None) for key in FLAGS})
        setattr(args, FLAGS_ATTRIBUTE, flags)
        check_lossless(args)
        if BACKEND in attention_backends(args):
            _check_sources(args, flags)
            _check_port(args)
            model = _model_of(args)
            if model is not None:
                _check_model(args, args, model)
        elif flags:
            raise LimConfigError(f"{FLAGS[next(iter(flags))]} needs the lim backend; add --attention-backend lim")
    except (LimConfigError, UnsupportedError) as error:
        exit_with(str(error))
    return flags


def check_launch(server_args: Any) -> None:
    """Refuse a launch that selects ``lim`` and cannot work; one that does not select it is none of our business.

    Raises:
        LimConfigError, UnsupportedError: for a program that uses ``Engine``.
        SystemExit: with one line on stderr, for the command line.
    """
    args = compat.effective_args(server_args)
    asked, chosen = attention_backends(server_args), attention_backends(args)
    if BACKEND not in (*asked, *chosen) and not asks_for_lossless(args):
        return
    with one_line_for_the_command_line(server_args):
        check_lossless(args)
        _check_model(server_args, args, model_config(server_args))
        if BACKEND not in chosen:
            raise UnsupportedError(
                f"--attention-backend {BACKEND} does not work with this model: SGLang replaces it by {chosen[1]}; "
                f"{DENSE}"
            )
        if args.enable_mixed_chunk:
            logger.warning("lim: --enable-mixed-chunk: decode rows that share a batch with a prefill are dense")


@contextmanager
def one_line_for_the_command_line(server_args: Any) -> Iterator[None]:
    """End the launch with one line where a refusal comes up and the launch is one from the command line.

    In a child process SGLang's launcher is told as its scheduler tells it, and ends all processes of the launch.

    Raises:
        LimConfigError, UnsupportedError: what came up, for a program that uses ``Engine``.
        SystemExit: with one line on stderr, for the command line.
    """
    try:
        yield
    except (LimConfigError, UnsupportedError) as error:
        if not hasattr(server_args, FLAGS_ATTRIBUTE):
            raise
        try:
            exit_with(str(error))
        finally:
            if multiprocessing.parent_process() is not None:
                os.kill(os.getppid(), signal.SIGQUIT)


def resolve(server_args: Any, model: Any, *, warn: bool = False) -> tuple[LimConfig, LayerPlan]:
    """The configuration from flags, model config and environment, and the plan it means for this model.

    Args:
        server_args: SGLang's launch options, or the parsed command line.
        model: SGLang's ``ModelConfig``.
        warn: Log a warning when the select layers follow a rule of thumb.

    Raises:
        LimConfigError: a value that cannot work.
    """
    config = resolve_config(
        getattr(server_args, FLAGS_ATTRIBUTE, None),
        getattr(model.hf_config, MODEL_CONFIG_KEY, None),
        os.environ.get(ENV_CONFIG),
        os.environ.get(ENV_DRAFTS),
    )
    depth, layers, attending = model.num_hidden_layers, config.select_layers, attending_layers(model)
    if layers == "auto":
        name = str(server_args.model_path)
        architecture = model.hf_config.architectures[0]
        layers, source = select_layers_for_model(
            depth, architecture, model.hidden_size, model.num_key_value_heads, name, attending
        )
        if warn and source == RULE:
            logger.warning("lim: %s", rule_warning(name, layers))
    return config, LayerPlan.from_select_layers(depth, layers, attending)


def _check_sources(args: Namespace, flags: dict[str, Any]) -> None:
    """Judge what is known of the configuration before the model's config is read."""
    overrides = parse_config_json(args.json_model_override_args or "{}", "--json-model-override-args")
    resolve_config(flags, overrides.get(MODEL_CONFIG_KEY), os.environ.get(ENV_CONFIG))


def _check_port(args: Namespace) -> None:
    reason = why_not_bound(args.host, args.port)
    if reason:
        raise UnsupportedError(
            f"cannot listen on port {args.port} of {args.host}: {reason}; choose others with --port and --host"
        )


def _model_of(args: Namespace) -> Any | None:
    """SGLang's ``ModelConfig`` of a command line, or None where it is too early for one."""
    try:
        return model_config_of_command_line(args)
    except ValueError as error:
        raise UnsupportedError(
            f"{args.model_path} holds no usable model config: {error}; check "
            f"{args.decrypted_config_file or 'its config.json'}"
        ) from error


def _check_model(server_args: Any, args: Any, model: Any) -> None:
    """``args`` are the options in effect; ``server_args`` carries the ``--lim-*`` flags."""
    check_supported(args, model)
    config, plan = resolve(server_args, model)
    if config.draft_weights == "int8" and not asks_for_lossless(args):
        raise LimConfigError("draft_weights=int8 needs the lossless mode; add --speculative-algorithm LIM")
    if args.device == "cuda":
        try:
            check_device_limits(config.parts, model.num_attention_heads)
        except ValueError as error:
            raise LimConfigError(str(error)) from error
    for start, end in pipeline_stages(model.num_hidden_layers, args.pp_size):
        plan.check_stage(start, end)
