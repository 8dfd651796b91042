"""Ports that are still a server's own when it binds them a minute later."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from lim_sglang.tools.servers import ports
from lim_sglang.tools.servers.ports import free_port, why_not_bound


def ephemeral_from(first: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = folder / "ip_local_port_range"
    told.write_text(f"{first}\t60999\n")
    monkeypatch.setattr(ports, "_EPHEMERAL", told)


def test_a_free_port_is_none_that_the_kernel_hands_out() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    chosen = {free_port() for _ in range(50)}
    assert len(chosen) > 40
    assert all(1024 <= port < lowest for port in chosen)
    assert {why_not_bound("127.0.0.1", port) for port in chosen} == {""}


@pytest.mark.parametrize("first", [1_024, 10_000, 10_001, 12_000])
def test_ephemeral_ports_leave_little_or_no_room(first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ephemeral_from(first, tmp_path, monkeypatch)
    chosen = {free_port() for _ in range(20)}
    assert {why_not_bound("127.0.0.1", port) for port in chosen} == {""}
    assert first <= 10_000 or chosen <= set(range(10_000, first))


def test_a_system_that_does_not_tell_its_ephemeral_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_EPHEMERAL", tmp_path / "none")
    assert free_port() in range(10_000, 20_000)


def test_a_taken_port_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ephemeral_from(10_001, tmp_path, monkeypatch)
    with socket.create_server(("127.0.0.1", 10_000)):
        assert free_port() != 10_000


def test_a_port_that_cannot_be_had_is_told_apart() -> None:
    for host in ("127.0.0.1", "0.0.0.0"):
        with socket.create_server((host, 0)) as taken:
            assert why_not_bound("127.0.0.1", taken.getsockname()[1]) == "it is in use"
    assert why_not_bound("127.0.0.1", 0) == ""
    assert why_not_bound("192.0.2.1", 0) == "Cannot assign requested address"


def test_a_port_is_free_again_while_its_last_connection_is_waited_out() -> None:
    """As when a server is started again on its port at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        connection, _ = server.accept()
        connection.close()  # the side that closes first holds the port in TIME_WAIT
        client.close()
    assert why_not_bound("127.0.0.1", port) == ""
