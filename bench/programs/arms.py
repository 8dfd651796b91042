"""The servers that the programs run on, one after the other: running ones, or two that are started for the time."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from bench.programs.metering import CONNECT_SECONDS, MeteredEndpoint, ProgramError, connect
from lim_sglang.errors import one_line
from lim_sglang.tools.servers.access import headers, key_of
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

    def why_lost(self, reason: str) -> str:
        """``reason``, or what the log of a server that has ended tells."""
        try:
            if self.process is not None:
                self.process.check_running(wait=10 if "no longer answers" in reason else 0)
        except ServerError as error:
            return str(error)
        return reason


def lim_state(endpoint: MeteredEndpoint) -> dict[str, Any] | None:
    """Config, plan and counters of lim; None without it."""
    url = endpoint.base_url
    try:
        answer = httpx.get(f"{url}/server_info", headers=headers(endpoint.api_key), timeout=CONNECT_SECONDS)
        return lim_part(answer.raise_for_status().json())
    except NoLimError:
        return None
    except LimStateError as error:
        raise ProgramError(f"{url}: {error}") from error
    except (httpx.HTTPError, ValueError) as error:
        raise ProgramError(f"{url} does not tell its counters ({one_line(str(error))})") from error


def running(endpoint: MeteredEndpoint, expected: str | None = None) -> Arm:
    """A server that somebody else has started."""
    state = lim_state(endpoint)
    attention = DENSE if state is None else LOSSLESS if "lossless" in state["counters"] else LIM
    if expected is not None and (expected == DENSE) != (attention == DENSE):
        url = endpoint.base_url
        raise ProgramError(f"{url} serves with {attention} attention, not {expected}; fix: name another server")
    return Arm(attention, endpoint)


def arms(args: argparse.Namespace, note: Console) -> Generator[Arm]:
    """Every arm, ready; the one before has been stopped by then. Dense comes first, as others are compared with it."""
    key = key_of(args)
    if not args.launch:
        for url, expected in ((args.dense_server, DENSE), (args.server, LIM if args.dense_server else None)):
            if url is not None:
                yield running(connect(url, args.chat_template, key), expected)
        return
    for attention in (DENSE, LIM, *([LOSSLESS] if args.lossless else [])):
        log = Path(args.out) / f"programs-{attention}.log"
        options = {"budget": args.budget, "given": args.server_arg}
        with launched(attention, args.model, size=BENCH_SIZE, log=log, note=note, **options) as server:
            yield Arm(attention, connect(server.url, args.chat_template, server.key or key), server)
