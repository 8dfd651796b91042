"""The plugin that times the backend's host work: found by spawned processes, and what it leaves."""

from __future__ import annotations

import multiprocessing
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.speed import host_timer


def found_plugins(_: int) -> list[str]:
    return [entry.value for entry in entry_points(group="sglang.srt.plugins")]


def test_a_spawned_process_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(host_timer.FILE, "")
    assert "bench.speed.host_timer:register" not in found_plugins(0)
    host_timer.install(tmp_path)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert "bench.speed.host_timer:register" in pool.map(found_plugins, [0])[0]


def test_decode_replays_are_timed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = tmp_path / "times.jsonl"
    times.touch()
    monkeypatch.setenv(host_timer.FILE, str(times))
    monkeypatch.setattr(host_timer, "EVERY", 4)
    assert host_timer.read(times) == {}
    hook = host_timer.timed("lim")
    decode, prefill = (
        SimpleNamespace(forward_mode=SimpleNamespace(is_decode=lambda is_decode=is_decode: is_decode))
        for is_decode in (True, False)
    )
    seen: list[tuple[object, bool]] = []
    for batch, in_capture in [(decode, True), (prefill, False), *[(decode, False)] * 4]:
        hook(lambda _, batch, in_capture: seen.append((batch, in_capture)), None, batch, in_capture)
    assert len(seen) == 6, "every call reaches the backend"
    found = host_timer.read(times)
    assert list(found) == ["lim"]
    assert 0 < found["lim"] < 1e5
