"""The servers that the programs run on, one after the other: running ones, or two that are started for the time."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.programs.metering import MeteredEndpoint, ProgramError, connect, server_info
from lim_sglang.errors import PREFIX
from lim_sglang.tools.servers.access import key_of
from lim_sglang.tools.servers.local import BENCH_SIZE, DENSE, LIM, LOSSLESS, launched
from lim_sglang.tools.servers.process import ServerError, ServerProcess
from lim_sglang.tools.servers.state import LimStateError, NoLimError, lim_part


@dataclass(frozen=True)
class Arm:
    """One server of the comparison.

    Attributes:
        attention: ``lim``, ``lossless``, or ``dense`` for whatever else the server runs.
        process: the server, if this run has started it.
    """

    attention: str
    endpoint: MeteredEndpoint
    process: ServerProcess | None = None

    def lim_state(self) -> dict[str, Any] | None:
        """Config, plan and counters of lim; None without it."""
        return lim_state(self.endpoint)

    def why_lost(self, reason: str) -> str:
        """``reason``, or what the log of a server that has ended tells."""
        try:
            if self.process is not None:
                self.process.check_running(wait=10 if "no longer answers" in reason else 0)
        except ServerError as error:
            return str(error)
        return reason


def lim_state(endpoint: MeteredEndpoint) -> dict[str, Any] | None:
    try:
        return lim_part(server_info(endpoint.base_url, endpoint.api_key))
    except NoLimError:
        return None
    except LimStateError as error:
        raise ProgramError(f"{endpoint.base_url}: {error}") from error


def connected(url: str, key: str | None, chat_template: str | None, note: Console) -> MeteredEndpoint:
    """``connect``, with what the user should know of the connection."""
    endpoint = connect(url, chat_template, key)
    if endpoint.note:
        note.print(f"{PREFIX}: {endpoint.note}", soft_wrap=True, markup=False)
    return endpoint


def running(endpoint: MeteredEndpoint, expected: str | None = None) -> Arm:
    """A server that somebody else has started."""
    attention = attention_of(lim_state(endpoint))
    if expected is not None and (expected == DENSE) != (attention == DENSE):
        url = endpoint.base_url
        raise ProgramError(f"{url} serves with {attention} attention, not {expected}; fix: name another server")
    return Arm(attention, endpoint)


def attention_of(state: dict[str, Any] | None) -> str:
    """What a server with this state of lim attends with."""
    if state is None:
        return DENSE
    return LOSSLESS if "lossless" in state["counters"] else LIM


def arms(args: argparse.Namespace, note: Console) -> Generator[Arm]:
    """Every arm, ready; the one before has been stopped by then. Dense comes first, as others are compared with it."""
    key = key_of(args)
    if not args.launch:
        for url, expected in ((args.dense_server, DENSE), (args.server, LIM if args.dense_server else None)):
            if url is not None:
                yield running(connected(url, key, args.chat_template, note), expected)
        return
    for attention in (DENSE, LIM, *([LOSSLESS] if args.lossless else [])):
        log = Path(args.out) / f"programs-{attention}.log"
        options = {"budget": args.budget, "given": args.server_arg}
        with launched(attention, args.model, size=BENCH_SIZE, log=log, note=note, **options) as server:
            yield Arm(attention, connected(server.url, server.key or key, args.chat_template, note), server)
