"""What all programs share: their flags, one bounded run, and being run alone."""

from __future__ import annotations

import argparse
import math
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from bench import driver
from bench.programs.metering import MeteredEndpoint, ProgramError, connect, decode_speed
from lim_sglang.errors import PREFIX, exit_with, one_line
from lim_sglang.tools.servers.access import AccessError, add_key_argument, key_of

Show = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a program came to.

    Attributes:
        answer: compared between dense and lim as it is.
        chains: generated texts; within a chain each was generated after the ones before it, chains are independent.
        transcript: the whole text of the main state.
        details: what is particular to the program, in JSON types.
    """

    answer: str
    chains: list[list[str]]
    transcript: str
    details: dict[str, Any] = field(default_factory=dict)


class Program(Protocol):
    """A module of this folder that is a program."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, endpoint: MeteredEndpoint, args: argparse.Namespace, show: Show) -> Outcome: ...


def execute(program: Program, endpoint: MeteredEndpoint, args: argparse.Namespace, show: Show | None = None) -> Outcome:
    """Run a program to its end, to its first failed request or to ``--time-limit``, whichever comes first.

    It runs in a daemon thread, as do then the threads that SGLang starts for it: none can keep the process alive.

    Raises:
        ProgramError: it failed or took too long.
    """
    _quieten_sglang()
    outcomes: list[Outcome] = []
    errors: list[Exception] = []

    def body() -> None:
        try:
            outcomes.append(program.run(endpoint, args, show or _hide))
        except Exception as error:
            errors.append(error)
        endpoint.woken.set()

    threading.Thread(target=body, name="program", daemon=True).start()
    in_time = endpoint.woken.wait(args.time_limit)
    endpoint.cancelled = True  # what still runs ends at its next token
    if not in_time:
        raise ProgramError(f"not finished after {args.time_limit:g} s; fix: a larger --time-limit")
    for error in filter(None, [endpoint.failure, *errors]):
        raise ProgramError(reason_of(error)) from error
    return outcomes[0]


def _quieten_sglang() -> None:
    """Print no traceback of what SGLang's threads fail with, as a warning or otherwise; `execute` tells the reason."""
    warnings.filterwarnings("ignore", message="Error in stream_executor")
    threading.excepthook = _report_unless_sglang


def _report_unless_sglang(failed: threading.ExceptHookArgs) -> None:
    frames = traceback.walk_tb(failed.exc_traceback)
    if not any(frame.f_globals.get("__name__", "").startswith("sglang.lang.") for frame, _ in frames):
        threading.__excepthook__(failed)


def _hide(piece: str) -> None:
    """Show nothing."""


def reason_of(error: Exception) -> str:
    """One line for a person; a server's refusal is told in its own words."""
    said = error.args[0] if error.args else ""
    if isinstance(said, dict):  # what RuntimeEndpoint raises for an answer that is no success
        said = said.get("error", said)
        said = said.get("message", said) if isinstance(said, dict) else said
        return one_line(f"the server refused: {said}")[:500]
    if isinstance(error, OSError):
        return one_line(f"the server no longer answers: {error}")[:500]
    return one_line(str(error) if isinstance(error, ProgramError) else f"{type(error).__name__}: {error}")[:500]


# Flags


def whole(low: int, high: int) -> Callable[[str], int]:
    """A converter of flags: a whole number from ``low`` to ``high``."""

    def convert(text: str) -> int:
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdecimal()) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}; fix: give one")
        return int(text)

    return convert


def number(low: float, high: float) -> Callable[[str], float]:
    """A converter of flags: a number from ``low`` to ``high``."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}; fix: give one")
        return value

    return convert


def server_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL; fix: give one such as http://127.0.0.1:30000")
    return text.rstrip("/").removesuffix("/v1")


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that every program has."""
    flag = parser.add_argument
    flag("--max-tokens", type=whole(1, 1 << 20), default=48, help="longest generation of one step, in tokens (48)")
    flag("--temperature", type=number(0, 2), default=0.0, help="0 to 2; 0 is greedy, as comparing needs it (0)")
    flag("--seed", type=whole(0, 2**31 - 1), default=0, help="of the problems that are made up (0)")
    flag("--time-limit", type=number(0.1, 86400), default=600.0, help="seconds that one program may take (600)")
    flag("--chat-template", metavar="NAME", help="SGLang frontend template, as in llama-3-instruct (by model; chatml)")
    add_key_argument(parser)


class OneLineParser(argparse.ArgumentParser):
    """Answers a mistake in one line, without the usage."""

    def error(self, message: str) -> Any:
        exit_with(message, code=2)


def run_alone(program: Program, description: str, argv: Sequence[str] | None = None) -> None:
    """The command line of one program: print what it does on ``--server`` and what it cost."""
    parser = driver.parser(description, OneLineParser)
    parser.add_argument("--server", type=server_url, default="http://127.0.0.1:30000", help="%(default)s")
    add_shared_arguments(parser)
    program.add_arguments(parser)
    args = parser.parse_args(argv)
    shown = False

    def show(piece: str) -> None:
        nonlocal shown
        shown = True
        print(piece, end="", flush=True)

    began = time.monotonic()
    try:
        endpoint = connect(args.server, args.chat_template, key_of(args)).fresh()
        if endpoint.note:
            print(f"{PREFIX}: {endpoint.note}", file=sys.stderr, flush=True)
        outcome = execute(program, endpoint, args, show)
    except (ProgramError, AccessError) as error:
        exit_with(str(error))
    except KeyboardInterrupt:
        exit_with("interrupted", code=130)
    if not shown:
        print(outcome.transcript)
    print(f"\n\nanswer: {one_line(outcome.answer)}")
    print(*(f"{key}: {value}" for key, value in outcome.details.items()), sep="\n")
    print(cost(endpoint, time.monotonic() - began))


def cost(endpoint: MeteredEndpoint, seconds: float) -> str:
    """What a run cost, in one line."""
    requests, speed = endpoint.requests, decode_speed(endpoint.requests)
    prompt, cached = sum(r.prompt_tokens for r in requests), sum(r.cached_tokens for r in requests)
    return (
        f"{len(requests)} requests, {prompt:,} prompt tokens ({cached:,} of them cached), "
        f"{sum(r.completion_tokens for r in requests):,} generated, {seconds:.1f} s"
        + (f", {speed:.1f} tokens/s in decode" if speed else "")
    )
