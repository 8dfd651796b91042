"""The ``--lim-*`` flags on SGLang's command line, and one clear line for a flag that does not exist."""

from __future__ import annotations

import argparse
import difflib
import functools
from typing import Any, NoReturn

from lim_patches.patch import Patch
from lim_sglang.config import FLAGS
from lim_sglang.errors import exit_with
from lim_sglang.host.launch import flag_dest

_UNKNOWN = "unrecognized arguments: "
_HELP = {
    "budget": ("TOKENS", "tokens that a sparse layer attends to (default 2048)"),
    "recency_ratio": ("SHARE", "share of the budget for sinks and the most recent tokens, 0 to 1 (default 0.25)"),
    "sink_tokens": ("TOKENS", "first tokens of the sequence that are always attended to (default 4)"),
    "select_layers": ("LAYERS", "layers that choose the token set, as in 2,12, or auto: by model (default)"),
}


def declare_flags(_result: Any, parser: argparse.ArgumentParser) -> None:
    """Add the flags; their values stay text until ``lim_sglang.config`` judges them."""
    group = parser.add_argument_group("lim", "LessIsMore sparse decode attention (--attention-backend lim)")
    for key, flag in FLAGS.items():
        metavar, text = _HELP[key]
        group.add_argument(flag, dest=flag_dest(key), metavar=metavar, default=None, help=text)
    parser.error = functools.partial(explain, parser, parser.error)  # type: ignore[method-assign]


def explain(parser: argparse.ArgumentParser, original_error: Any, message: str) -> NoReturn:
    """Name the closest flag instead of printing the usage of some five hundred flags."""
    if not message.startswith(_UNKNOWN):
        original_error(message)
    unknown = [word for word in message[len(_UNKNOWN) :].split() if word.startswith("-")] or [message]
    name = unknown[0].split("=")[0]
    close = difflib.get_close_matches(name, parser._option_string_actions, n=1)
    hint = f"did you mean {close[0]}?" if close else "see --help for the flags there are"
    exit_with(f"unknown flag {name}; {hint}", code=2)


PATCH = Patch("sglang.srt.server_args.ServerArgs.add_cli_args", declare_flags, "after")
