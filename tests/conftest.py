"""On a machine without a GPU the Triton kernels run in Triton's interpreter, which has to be chosen before import."""

from __future__ import annotations

import os

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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` need an NVIDIA GPU; with ``--dist loadgroup`` one process starts all servers."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
    if config.getoption("dist", "no") == "loadgroup":
        for item in items:  # two processes with servers need more than 24 GB
            item.add_marker(pytest.mark.xdist_group("e2e" if item.get_closest_marker("e2e") else item.path.stem))
