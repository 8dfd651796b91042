"""The ``--lim-*`` flags on SGLang's command line."""

from __future__ import annotations

import argparse
from typing import Any

from lim_patches.patch import Patch
from lim_sglang.config import FLAGS, KEYS, LimConfig


def declare_flags(_result: Any, parser: argparse.ArgumentParser) -> None:
    """Add the flags; their values stay text until ``lim_sglang.config`` judges them."""
    group = parser.add_argument_group("lim", "LessIsMore sparse decode attention (--attention-backend lim)")
    for name, key in KEYS.items():
        nargs = "+" if key.several else None
        text = f"{key.help} (default {getattr(LimConfig, name)})"
        group.add_argument(FLAGS[name], metavar=key.metavar, nargs=nargs, default=None, help=text)


PATCH = Patch("sglang.srt.server_args.ServerArgs.add_cli_args", declare_flags, "after")
