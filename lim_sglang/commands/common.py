"""What commands share: converters of flags, the names of lim's flags, the output file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from lim_sglang.config import FLAGS


class CommandError(RuntimeError):
    """The command cannot go on; the message is one line with the fix."""


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
