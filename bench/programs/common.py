"""What all programs share: their flags, one bounded run, and being run alone."""

from __future__ import annotations

import argparse
import math
import re
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from bench import driver
from bench.programs.metering import MeteredEndpoint, ProgramError, connect, cost
from lim_sglang.errors import exit_with, one_line
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
            outcomes.append(program.run(endpoint, args, show or (lambda piece: None)))
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


def number(low: float, high: float, kind: type[float] = float) -> Callable[[str], float]:
    """A converter of flags: a number from ``low`` to ``high``."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            name = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"{text!r} is not a {name} from {low} to {high}; fix: give one")
        return value

    return convert


whole = partial(number, kind=int)


def server_url(text: str) -> str:
    if not re.match(r"https?://[^/:]", text):
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
    shown: list[str] = []

    def show(piece: str) -> None:
        shown.append(piece)
        print(piece, end="", flush=True)

    began = time.monotonic()
    try:
        endpoint = connect(args.server, args.chat_template, key_of(args))
        outcome = execute(program, endpoint, args, show)
    except (ProgramError, AccessError) as error:
        exit_with(str(error))
    except KeyboardInterrupt:
        exit_with("interrupted", code=130)
    if not shown:
        print(outcome.transcript)
    print(f"\n\nanswer: {one_line(outcome.answer)}")
    print(*(f"{key}: {value}" for key, value in outcome.details.items()), sep="\n")
    spent = cost(endpoint.requests, time.monotonic() - began)
    line = (
        "{requests} requests, {prompt_tokens:,} prompt tokens ({cached_tokens:,} of them cached), "
        "{generated_tokens:,} generated, {wall_seconds:.1f} s"
    )
    speed = spent["decode_tokens_per_s"]
    print(line.format(**spent) + (f", {speed:.1f} tokens/s in decode" if speed else ""))
