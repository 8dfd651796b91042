"""On a machine without a GPU the Triton kernels run in Triton's interpreter, which has to be chosen before import."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.experimental.gluon  # noqa: F401  (it takes over functions that must be interpreted as well)

    import lim_kernels.decode.kernel
    import lim_kernels.decode.slots
    import lim_kernels.select.exchange
    import lim_kernels.select.full_ranking
    import lim_kernels.select.shortlist  # noqa: F401

    del os.environ["TRITON_INTERPRET"]  # not for SGLang's kernels, and not for servers that tests start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` need an NVIDIA GPU."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """SGLang sets the root logger up whenever it parses options: its handler would outlive the stream it writes to."""
    root = logging.getLogger()
    level = root.level
    yield
    root.handlers[:] = [handler for handler in root.handlers if type(handler) is not logging.StreamHandler]
    root.setLevel(level)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n 2`` one process starts all servers, since two need more than 24 GB; modules stay whole."""
    from xdist.scheduler import LoadScopeScheduling

    class ServersInOneProcess(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.split("::", 1)[0]
            return "tests/e2e" if module.startswith("tests/e2e/") else module

    return ServersInOneProcess(config, log)
