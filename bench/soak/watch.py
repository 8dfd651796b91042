"""A server's memory before, during and after the traffic."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psutil

from lim_sglang.tools.servers.process import ServerProcess
from lim_sglang.tools.servers.state import NoLimError, lim_part

MINUTE = 60.0
COMPILE_WORKERS = "torch.compile's workers"  # one a core, forked, so that each counts the pages they share


async def settle(client: httpx.AsyncClient) -> bool:
    """Empty the cache and the pool, leaked tokens too; whether the server did, as it does when it is idle."""
    return (await client.post("/flush_cache", params={"timeout": 60})).is_success


async def state(client: httpx.AsyncClient, server: ServerProcess) -> dict[str, Any]:
    """Resident memory by process and used memory of the GPUs, in MiB; lim's own state."""
    info = (await client.get("/server_info")).raise_for_status().json()
    try:
        lim = lim_part(info)
    except NoLimError:
        lim = None
    return {"rss_mib": rss_mib(server), "gpu_mib": gpu_mib(), "lim": lim}


def rss_mib(server: ServerProcess) -> dict[str, int]:
    """Resident memory of the server's processes by role, in MiB; those that end meanwhile do not count.

    A role is a process's name, but for Inductor's helpers (torch/_inductor/compile_worker), named as Python is.
    """
    total: Counter[str] = Counter()
    for pid in server.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            compiles = any("/_inductor/compile_worker/" in argument for argument in process.cmdline())
            total[COMPILE_WORKERS if compiles else process.name()] += process.memory_info().rss
    return {name: size >> 20 for name, size in total.items()}


def gpu_mib() -> int:
    """Used memory of all GPUs, 0 without one; asked of the driver, so that this process takes none itself."""
    if shutil.which("nvidia-smi") is None:
        return 0
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return sum(map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()))


@contextlib.asynccontextmanager
async def memory_by_minute(server: ServerProcess) -> AsyncIterator[list[int]]:
    """Fills the list with the resident memory at the end of each minute of the block."""
    found: list[int] = []

    async def look() -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep((len(found) + 1) * MINUTE - (time.monotonic() - began))
            found.append(sum(rss_mib(server).values()))

    task = asyncio.create_task(look())
    try:
        yield found
    finally:
        task.cancel()
