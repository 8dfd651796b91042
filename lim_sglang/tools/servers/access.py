"""The key that a server started with ``--api-key`` wants from its clients, and what a client without it is told."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NoReturn

import httpx

VARIABLE = "OPENAI_API_KEY"  # where every client of an OpenAI-compatible server looks
_REFUSED = (401, 403)
_NAMES = ("api-key", "admin-api-key")
# argparse takes a name's beginning for the name
_OPTION = f"--(?:{'|'.join(name[:end] for name in _NAMES for end in range(len(name), 0, -1))})"
_GIVEN = re.compile(rf"({_OPTION}[= ]+)\S+")


class AccessError(RuntimeError):
    """The server wants a key, or another one; the message is one line with the fix."""


def add_key_argument(parser: argparse.ArgumentParser) -> None:
    """The flag ``--api-key``; ``key_of`` reads it."""
    parser.add_argument("--api-key", metavar="KEY", help=f"what the server's own --api-key says ({VARIABLE})")


def key_of(args: argparse.Namespace | None = None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The key to send: ``--api-key``, else the environment's; None where neither says one.

    Raises:
        AccessError: no HTTP header can hold it; the message keeps it secret.
    """
    flag = getattr(args, "api_key", None)
    key, place = (environ.get(VARIABLE), VARIABLE) if flag is None else (flag, "--api-key")
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise AccessError(
            f"the key of {place} has spaces or signs that no HTTP header takes; fix: ASCII without spaces"
        )
    return key or None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def server_key(options: Sequence[str]) -> str | None:
    """The key that a server with these options wants: its ``--api-key``, else its ``--admin-api-key``, else None.

    With the former, ordinary routes want it; the latter alone opens them to everybody and guards ``/flush_cache``.
    """
    parser = _Parser(add_help=False)
    parser.add_argument("--api-key")
    parser.add_argument("--admin-api-key")
    try:
        known, _ = parser.parse_known_args(list(options))
    except ValueError:  # the server will say so itself
        return None
    return known.api_key or known.admin_api_key or None


def headers(key: str | None) -> dict[str, str]:
    """What a request with ``key`` has to carry."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def check_access(response: httpx.Response, url: str, key: str | None) -> httpx.Response:
    """``response``, unless it refuses the client.

    Raises:
        AccessError: the server at ``url`` wants a key, or not this one.
    """
    if response.status_code not in _REFUSED:
        return response
    said = f"HTTP {response.status_code}"
    if key:
        raise AccessError(f"{url} wants another key than the one sent ({said}); fix: correct --api-key or {VARIABLE}")
    raise AccessError(f"{url} wants a key ({said}); fix: give its own by --api-key or {VARIABLE}")


def without_keys(arguments: Sequence[str]) -> list[str]:
    """A command line as it may be written to a file: with ``***`` for every key, also within an argument."""
    return [
        "***" if re.fullmatch(_OPTION, before) else _GIVEN.sub(r"\1***", argument)
        for before, argument in pairwise(["", *arguments])
    ]
