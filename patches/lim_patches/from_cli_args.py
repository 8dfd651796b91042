"""Keeps the ``--lim-*`` values: SGLang copies only the fields it declares from the parsed command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from lim_patches.patch import Patch
from lim_sglang.host.launch import FLAGS_ATTRIBUTE, check_command_line


def keep_flags(original: Callable[..., Any], cls: type, args: argparse.Namespace) -> Any:
    """Judge what can be judged before a model is looked at, then store the flags as plain JSON values."""
    flags = check_command_line(args)
    server_args = original(cls, args)
    setattr(server_args, FLAGS_ATTRIBUTE, flags)
    return server_args


PATCH = Patch("sglang.srt.server_args.ServerArgs.from_cli_args", keep_flags, "around")
