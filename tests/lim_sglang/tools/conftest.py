"""The tiny models of these tests, written and loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest

from lim_sglang.tools.analysis.model import PolicyModel

from .tiny_model import write_hybrid, write_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture(scope="session")
def hybrid_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hybrid(tmp_path_factory.mktemp("model") / "tiny-hybrid")


@pytest.fixture(scope="session")
def model(folder: Path) -> PolicyModel:
    return PolicyModel.load(folder)
