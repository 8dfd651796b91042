"""The GPU backend's modules where FlashInfer is not installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

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
