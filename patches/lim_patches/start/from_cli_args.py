"""Keeps the ``--lim-*`` values: SGLang copies only the fields it declares from the parsed command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from lim_patches.patch import Patch
from lim_sglang.config import MODEL_CONFIG_KEY
from lim_sglang.host.launch import FLAGS_ATTRIBUTE, check_command_line


def keep_flags(original: Callable[..., Any], cls: type, args: argparse.Namespace) -> Any:
    """Judge what can be judged before a model is looked at, then store the flags as plain JSON values.

    They also go into ``lim_config`` of the model config: a program may hand ``Engine`` a copy that is made of declared
    fields alone (``sglang.benchmark.offline_throughput`` of 0.5.16), and the flags must not be lost without a word.
    """
    flags = check_command_line(args)
    if flags:
        overrides = json.loads(args.json_model_override_args or "{}")
        overrides[MODEL_CONFIG_KEY] = (overrides.get(MODEL_CONFIG_KEY) or {}) | flags
        args.json_model_override_args = json.dumps(overrides)
    server_args = original(cls, args)
    setattr(server_args, FLAGS_ATTRIBUTE, flags)
    return server_args


PATCH = Patch("sglang.srt.server_args.ServerArgs.from_cli_args", keep_flags, "around")
