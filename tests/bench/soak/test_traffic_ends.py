"""Traffic starts where it is told, and ends with the server: no client goes on to write lost requests."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.soak.__main__ import traffic
from bench.soak.results import Report
from bench.soak.traffic import Limits, Maker
from lim_sglang.tools.servers.process import ServerError

CLIENTS = 4


class Ended:
    """Stands for a server process that has ended."""

    def check_running(self, wait: float) -> None:
        assert wait > 0, "a dying server may need a moment to end"
        raise ServerError("the server ended: killed")


def send(report: Report, count: int | None, answer: Any) -> None:
    async def traffic_of_an_hour() -> None:
        args, server, maker = Namespace(minutes=60, count=count, clients=CLIENTS), Ended(), Maker(0, Limits(9, 9, 99))
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://server") as client:
            await asyncio.wait_for(traffic(client, server, maker, report, args), 60)  # type: ignore[arg-type]

    asyncio.run(traffic_of_an_hour())


def test_a_server_that_has_ended_ends_the_traffic(tmp_path: Path) -> None:
    def refuse(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    report = Report(tmp_path / "soak.jsonl", seed=0)
    with pytest.raises(ServerError, match="the server ended: killed"):
        send(report, None, refuse)
    assert 1 <= len(Report(report.path, seed=0).outcomes) <= CLIENTS


def test_operations_that_are_asked_for_are_done_again() -> None:
    """``--first 5 --count 2``: without a file, from a number on."""
    report = Report(None, 0, first=5)
    send(report, 2, lambda _request: httpx.Response(500, text="no"))
    assert sorted(outcome.number for outcome in report.outcomes) == [5, 6]
