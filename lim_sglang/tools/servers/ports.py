"""TCP ports for servers.

A server binds its port only when its model is loaded. Until then an ephemeral port may become another socket's; SGLang
0.5.16 and 0.5.23 then ask that socket for /model_info, for 12 minutes, before they end.
"""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

from lim_sglang.host.ports import why_not_bound

HOST = "127.0.0.1"
# SGLang chooses ports of its own from 22000 up, its default is 30000.
_PORTS = range(10_000, 20_000)
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_EPHEMERAL = 32_768  # Linux's default; other systems begin at 49,152
_ATTEMPTS = 64


def free_port() -> int:
    """A loopback port that nobody uses now; outside the ephemeral ports, where those leave room."""
    below = _PORTS[: max(0, _first_ephemeral() - _PORTS.start)]
    for port in random.sample(below, min(_ATTEMPTS, len(below))):
        if not why_not_bound(HOST, port):
            return port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def _first_ephemeral() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(_EPHEMERAL.read_text().split()[0])
    return _FIRST_EPHEMERAL
