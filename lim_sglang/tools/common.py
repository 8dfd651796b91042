"""What commands share: how they end, converters of flags, the flags of lim's configuration, folders and files."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path

from lim_sglang.config import FLAGS, LimConfigError
from lim_sglang.errors import exit_with


class CommandError(RuntimeError):
    """The command cannot go on; the message is one line with the fix."""


def run(work: Callable[[], None]) -> int:
    """Do a command's work; 0. Any mistake leaves by one line on stderr, with 1, or 130 after Ctrl-C.

    Mistakes are a wrong configuration and every ``RuntimeError``: this command's, those of the rooms it uses, and
    torch's, such as out of memory.
    """
    try:
        work()
    except LimConfigError as error:
        exit_with(own_flags(str(error)))
    except RuntimeError as error:
        exit_with(str(error))
    except KeyboardInterrupt:
        exit_with("interrupted", code=130)
    return 0


def add_config_arguments(parser: argparse.ArgumentParser, budget: int) -> None:
    """Flags of lim's configuration; their values stay text and are judged together."""
    parser.add_argument("--budget", metavar="K", help=f"tokens that a sparse layer attends to ({budget})")
    parser.add_argument("--recency-ratio", metavar="R", help="share of the budget for sinks and recent tokens (0.25)")
    parser.add_argument("--sink-tokens", metavar="S", help="first tokens, always attended to (4)")


def integer(flag: str, text: str, low: int, high: int | None = None, *, example: int | None = None) -> int:
    """The value of a flag that stayed text.

    Raises:
        CommandError: it is not an integer from ``low`` to ``high`` (None: any of up to nine digits).
    """
    if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= (int(text) if high is None else high):
        wanted = f"{low} on" if high is None else f"{low} to {high}"
        raise CommandError(f"{flag} {text}: expected an integer from {wanted}; for example {flag} {example or high}")
    return int(text)


def model_folder(flag: str, given: str) -> Path:
    """The folder that a flag names.

    Raises:
        CommandError: it is no folder of a Hugging Face model.
    """
    if not (Path(given) / "config.json").is_file():
        raise CommandError(f"{flag} {given} holds no config.json; give the folder of a Hugging Face model")
    return Path(given)


def positive(text: str) -> int:
    """A converter of flags: a whole number above 0."""
    if not (text.isascii() and text.isdecimal()) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def own_flags(message: str) -> str:
    """A configuration error names the server's flags; these commands' lack the prefix."""
    for flag in FLAGS.values():
        message = message.replace(flag, flag.replace("--lim-", "--"))
    return message


def check_out(out: Path) -> None:
    """Find out before the work whether ``--out`` could be written.

    Raises:
        CommandError: it could not.
    """
    if out.is_dir():
        raise CommandError(f"--out {out}: is a folder; name a file in it")
    if not out.parent.is_dir():
        raise CommandError(f"--out {out}: there is no folder {out.parent}; make it or name another file")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise CommandError(f"--out {out}: may not be written; name another file")


def write_out(out: Path, text: str) -> None:
    """Write ``--out`` as UTF-8.

    Raises:
        CommandError: the system refused.
    """
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"--out {out}: {error.strerror}; name a file that can be written") from error
