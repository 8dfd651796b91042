"""The ``--lim-*`` flags on SGLang's command line, and one clear line for what the parser cannot read."""

from __future__ import annotations

import argparse
import difflib
import functools
from typing import Any, NoReturn

from lim_patches.patch import Patch
from lim_sglang.config import FLAGS
from lim_sglang.errors import exit_with, one_line
from lim_sglang.host.launch import flag_dest

_UNKNOWN = "unrecognized arguments: "
_HELP = {
    "budget": ("TOKENS", "tokens that a sparse layer attends to (default 2048)"),
    "recency_ratio": ("SHARE", "share of the budget for sinks and the most recent tokens, 0 to 1 (default 0.25)"),
    "sink_tokens": ("TOKENS", "first tokens of the sequence that are always attended to (default 4)"),
    "select_layers": ("LAYERS", "layers that choose the token set, as in 2,12 or 2 12, or auto: by model (default)"),
}
_SEVERAL = ("select_layers",)  # SGLang's --config turns a YAML list into several words


def declare_flags(_result: Any, parser: argparse.ArgumentParser) -> None:
    """Add the flags; their values stay text until ``lim_sglang.config`` judges them."""
    group = parser.add_argument_group("lim", "LessIsMore sparse decode attention (--attention-backend lim)")
    for key, flag in FLAGS.items():
        metavar, text = _HELP[key]
        nargs = "+" if key in _SEVERAL else None
        group.add_argument(flag, dest=flag_dest(key), metavar=metavar, nargs=nargs, default=None, help=text)
    parser.error = functools.partial(explain, parser, parser.error)  # type: ignore[method-assign]


def explain(parser: argparse.ArgumentParser, original_error: Any, message: str) -> NoReturn:
    """One line, without the usage of some five hundred flags, for an unknown word and for our own flags.

    An unknown flag gets the closest name, a stray word argparse's own line; what concerns only SGLang's flags stays
    SGLang's answer.
    """
    if not message.startswith(_UNKNOWN):
        if "--lim-" in message:
            exit_with(message, code=2)
        original_error(message)
    unknown = [word for word in message[len(_UNKNOWN) :].split() if _is_flag(word)]
    if unknown:
        exit_with(_unknown_flag(parser, unknown[0].split("=")[0]), code=2)
    parser.exit(2, f"{parser.prog}: error: {one_line(message)}\n")


def _is_flag(word: str) -> bool:
    """Whether argparse would take ``word`` for a flag: not for a negative number, nor for dashes alone."""
    return word.startswith("-") and not word.lstrip("-")[:1].isdigit() and word.strip("-") != ""


def _unknown_flag(parser: argparse.ArgumentParser, name: str) -> str:
    close = difflib.get_close_matches(name, parser._option_string_actions, n=1)
    return f"unknown flag {name}; " + (f"did you mean {close[0]}?" if close else "see --help for the flags there are")


PATCH = Patch("sglang.srt.server_args.ServerArgs.add_cli_args", declare_flags, "after")
