"""Lets ``import torchvision`` pass next to a CPU build of torch.

PyPI's torchvision is a CUDA build. Next to CPU torch its C++ operators do not load, and registering their shape
functions (``torchvision._meta_registrations``) then fails. Without the operators those registrations serve nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

NAME = "torchvision._meta_registrations"


class _TolerantLoader(Loader):
    """Runs the real module and forgives one error: that torchvision's operators are absent."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> Any:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        try:
            self.real.exec_module(module)
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise


class Finder(MetaPathFinder):
    """Wraps the loader of the one module."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname != NAME:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _TolerantLoader(spec.loader)
        return spec
