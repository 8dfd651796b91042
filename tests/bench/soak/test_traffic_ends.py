"""Traffic starts where it is told, and ends with the server: no client goes on to write lost requests."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.soak.__main__ import traffic
from bench.soak.results import Earlier, Report, earlier
from bench.soak.traffic import Limits, Maker
from lim_sglang.tools.servers.ports import free_port
from lim_sglang.tools.servers.process import ServerError

CLIENTS = 4


class Ended:
    """Stands for a server process that has ended."""

    def check_running(self, wait: float) -> None:
        assert wait > 0, "a dying server may need a moment to end"
        raise ServerError("the server ended: killed")


def test_a_server_that_has_ended_ends_the_traffic(tmp_path: Path) -> None:
    args = Namespace(minutes=60, count=None, clients=CLIENTS)
    report = Report(tmp_path / "soak.jsonl", seed=0)
    server: Any = Ended()

    async def send() -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{free_port()}", trust_env=False) as client:
            maker = Maker(0, Limits(300, 20, 1000))
            await asyncio.wait_for(traffic(client, server, maker, report, args, earlier(report.path, 0)), 60)

    with pytest.raises(ServerError, match="the server ended: killed"):
        asyncio.run(send())
    assert 1 <= len(report.path.read_text().splitlines()) <= CLIENTS


def test_an_operation_that_is_asked_for_is_done_again_whatever_a_folder_holds() -> None:
    """``--first 5 --count 2``: without a report, from a number on."""
    args = Namespace(minutes=60, count=2, clients=CLIENTS)
    server: Any = Ended()

    async def send() -> list[int]:
        transport = httpx.MockTransport(lambda _request: httpx.Response(500, text="no"))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            outcomes = await traffic(client, server, Maker(0, Limits(300, 20, 1000)), None, args, Earlier([], 0.0, 5))
            return sorted(outcome.number for outcome in outcomes)

    assert asyncio.run(send()) == [5, 6]
