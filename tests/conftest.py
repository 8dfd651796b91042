"""On a machine without a GPU the Triton kernels run in Triton's interpreter, which has to be chosen before import."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.experimental.gluon  # noqa: F401  (it takes over functions that must be interpreted as well)

    import lim_kernels.attend.kernel
    import lim_kernels.attend.slots
    import lim_kernels.linear.kernel
    import lim_kernels.select.complete
    import lim_kernels.select.exchange
    import lim_kernels.select.shortlist  # noqa: F401

    del os.environ["TRITON_INTERPRET"]  # not for SGLang's kernels, and not for servers that tests start

ROOT = Path(__file__).parents[1]
SERVERS = "tests/e2e/"
settings.register_profile("busy", deadline=None)  # an example takes as long as the machine lets it
settings.load_profile("busy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` need an NVIDIA GPU. Those that start servers come first, as they take longest."""
    items.sort(key=lambda item: not item.nodeid.startswith(SERVERS))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@cache
def _group(module: str) -> str:
    """What runs in one process, module after module: three groups share servers, whose memory is that of a runner."""
    if not module.startswith(SERVERS):
        return module
    text = (ROOT / module).read_text()
    return next((name for name in ("lim_server", "dense_server") if name in text), "own servers")


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
    """With ``-n 3 --no-loadscope-reorder`` each process begins with a group that starts servers. Modules stay whole."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid.split("::", 1)[0])

    return Groups(config, log)
