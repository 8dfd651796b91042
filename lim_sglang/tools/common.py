"""What commands share: how they end, converters of flags, the flags of lim's configuration, folders and files."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lim_sglang.config import FLAGS, KEYS, LimConfig, LimConfigError, parse_flag_values
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


def add_config_arguments(parser: argparse.ArgumentParser, keys: Sequence[str], **defaults: object) -> None:
    """Flags of lim's configuration, without the server's prefix; their values stay text and are judged together."""
    for key in keys:
        default = defaults.get(key, getattr(LimConfig, key))
        parser.add_argument(_own(FLAGS[key]), metavar=KEYS[key].metavar, help=f"{KEYS[key].help} ({default})")


def config_of(args: argparse.Namespace, **defaults: Any) -> LimConfig:
    """The configuration that the flags of ``add_config_arguments`` give.

    Raises:
        LimConfigError: a value that cannot work.
    """
    return LimConfig(**(defaults | parse_flag_values({key: getattr(args, key, None) for key in FLAGS})))


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
        message = message.replace(flag, _own(flag))
    return message


def _own(flag: str) -> str:
    return flag.replace("--lim-", "--")


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
