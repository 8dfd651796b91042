"""The GPU backend's modules where FlashInfer is not installed."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from .recording_wrapper import RecordingWrapper


@pytest.fixture
def wrappers(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """``lim_sglang.attention.wrappers`` with a FlashInfer that only records."""
    fake = ModuleType("flashinfer")
    fake.BatchDecodeWithPagedKVCacheWrapper = RecordingWrapper  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", fake)
    names = "lim_sglang.attention.flashinfer_sparse", "lim_sglang.attention.wrappers"
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    RecordingWrapper.made = []
    yield importlib.import_module(names[1])
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """SGLang's backend, imported before a stand-in for FlashInfer is there."""
    host = importlib.import_module("sglang.srt.layers.attention.flashinfer_backend")
    monkeypatch.setattr(host, "fast_decode_plan", lambda *_args, **_options: None, raising=False)
    return host


@pytest.fixture
def load(host: Any, wrappers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModuleType]]:
    """Imports a module of ``lim_sglang.attention``, whose host's constructor only sets what it is told, else None."""
    attributes = re.findall(r"self\.(\w+)(?:: [^=\n]+)? = ", inspect.getsource(host.FlashInferAttnBackend.__init__))
    loaded: list[str] = []

    def load(name: str, construct: Callable[[], dict[str, Any]]) -> ModuleType:
        def init(self: Any, _runner: Any, **_options: Any) -> None:
            vars(self).update(dict.fromkeys(attributes), **construct())

        monkeypatch.setattr(host.FlashInferAttnBackend, "__init__", init)
        loaded.append(f"lim_sglang.attention.{name}")
        sys.modules.pop(loaded[-1], None)
        return importlib.import_module(loaded[-1])

    yield load
    for name in loaded:
        sys.modules.pop(name, None)
