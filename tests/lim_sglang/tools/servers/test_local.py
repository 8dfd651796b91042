"""What servers on this machine are started with: by device, attention, size, and what a user adds."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lim_sglang.tools.servers import local as local_server
from lim_sglang.tools.servers.local import (
    DENSE,
    EMBEDDED_BUDGET,
    LOSSLESS,
    Size,
    find_device,
    launched,
    server_arguments,
)
from lim_sglang.tools.servers.process import ServerError

SIZE = Size(tokens=5000, requests=3)


def machine(monkeypatch: pytest.MonkeyPatch, *, gpu: bool, torch_sees_it: bool) -> None:
    monkeypatch.setattr(local_server, "gpu_device", lambda: "/dev/nvidiactl" if gpu else None)
    monkeypatch.setattr(local_server, "_torch_sees_gpu", lambda: torch_sees_it)


@pytest.mark.parametrize(("gpu", "note"), [(False, ""), (True, "torch cannot use it")])
def test_cpu(monkeypatch: pytest.MonkeyPatch, gpu: bool, note: str) -> None:
    machine(monkeypatch, gpu=gpu, torch_sees_it=False)
    device = find_device()
    for attention, name in (("lim", "lim"), (DENSE, "torch_native"), ("triton", "triton")):
        line = " ".join(server_arguments(device, attention, SIZE))
        assert f"--attention-backend {name}" in line
        assert "--device cpu --dtype float32" in line
        assert "--enable-cache-report" in line
        assert "--max-total-tokens 5000 --max-running-requests 3" in line
    assert device.env["SGLANG_USE_CPU_ENGINE"] == "1"
    assert note in device.note
    assert bool(device.note) == bool(note)


def test_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gpu=True, torch_sees_it=True)
    device = find_device()
    assert server_arguments(device, "lim", None)[:2] == ["--attention-backend", "lim"]
    assert server_arguments(device, DENSE, None)[:2] == ["--attention-backend", "flashinfer"]
    assert "--device" not in server_arguments(device, "lim", SIZE)
    assert (device.env, device.note) == ({}, "")


def test_options_go_to_both_servers_but_lims_own_flags() -> None:
    given = ["--page-size 16", "--lim-sink-tokens 8", "--x"]
    device = find_device()
    assert server_arguments(device, "lim", SIZE, given)[-5:] == ["--page-size", "16", "--lim-sink-tokens", "8", "--x"]
    assert server_arguments(device, DENSE, SIZE, given)[-3:] == ["--page-size", "16", "--x"]
    assert "--lim-sink-tokens" not in server_arguments(device, DENSE, SIZE, given)
    assert server_arguments(device, LOSSLESS, SIZE, given)[-5:] == server_arguments(device, "lim", SIZE, given)[-5:]


def test_the_lossless_mode_is_lim_with_its_algorithm() -> None:
    words = server_arguments(find_device(), LOSSLESS, SIZE)
    assert words[:4] == ["--attention-backend", "lim", "--speculative-algorithm", "LIM"]
    assert words[4:] == server_arguments(find_device(), "lim", SIZE)[2:]


class Recorded:
    """Stands for a server process: keeps what it would have been started with."""

    def __init__(self, model: str | Path, options: list[str], **_more: Any) -> None:
        self.model, self.options = str(model), " ".join(options)

    def __enter__(self) -> Recorded:
        return self

    def __exit__(self, *_error: object) -> None: ...

    def wait_ready(self, _progress: object) -> None: ...

    def check_running(self, wait: float) -> None:
        raise ServerError("it ran out of memory")


@pytest.mark.parametrize(
    ("gpu", "model", "attention", "budget", "limited", "words"),
    [
        (False, None, "lim", None, True, f"--lim-budget {EMBEDDED_BUDGET}"),
        (True, None, "lim", 64, True, "--lim-budget 64"),
        (True, "org/model", "lim", None, False, ""),  # lim's own default
        (True, "org/model", "lim", 4096, False, "--lim-budget 4096"),
        (False, "org/model", "lim", None, True, ""),
        (False, None, DENSE, 64, True, ""),
    ],
)
def test_size_and_budget_follow_model_and_device(
    monkeypatch: pytest.MonkeyPatch,
    gpu: bool,
    model: str | None,
    attention: str,
    budget: int | None,
    limited: bool,
    words: str,
) -> None:
    machine(monkeypatch, gpu=gpu, torch_sees_it=gpu)
    monkeypatch.setattr(local_server, "ServerProcess", Recorded)
    monkeypatch.setattr(local_server, "ensure_model", lambda: "embedded")
    note = Console(file=io.StringIO())
    with launched(attention, model, budget=budget, size=SIZE, given=[], log=Path("x"), note=note) as server:
        started: Any = server
    assert started.model == (model or "embedded")
    assert ("--max-total-tokens 5000" in started.options) == limited
    assert ("--mem-fraction-static" in started.options) == (limited and gpu)
    assert ("--lim-budget" in started.options) == bool(words)
    assert words in started.options


@pytest.mark.parametrize(("lost", "told"), [(TimeoutError, "it ran out of memory"), (KeyError, "no answer")])
def test_a_server_that_ended_is_told_where_it_was_lost(
    monkeypatch: pytest.MonkeyPatch, lost: type[Exception], told: str
) -> None:
    monkeypatch.setattr(local_server, "ServerProcess", Recorded)
    options: dict[str, Any] = {"budget": None, "size": SIZE, "given": [], "log": Path("x")}
    note = Console(file=io.StringIO())
    with (
        pytest.raises((ServerError, TimeoutError), match=told),
        launched("lim", "org/model", note=note, lost=lost, **options),
    ):
        raise TimeoutError("no answer")
