"""Stand-in for ``sgl_kernel``: its wheel cannot load without a GPU driver, and SGLang imports it by name."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import torch

NAME = "sgl_kernel"
MAMBA = f"{NAME}.mamba"


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    _pool_len: int,
) -> None:
    """Write each request's new cache slots into its row of ``req_to_token``.

    Args:
        req_pool_indices: [B] rows of ``req_to_token``.
        req_to_token: [rows, pool_len] int32, written in place.
        start_offset, end_offset: [B] first and last-plus-one position that each request gains.
        out_cache_loc: the new slots of all requests, one after the other.
    """
    taken = 0
    for row, start, end in zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True):
        req_to_token[row, start:end] = out_cache_loc[taken : taken + end - start].to(req_to_token.dtype)
        taken += end - start


def copy_all_layer_kv_cache_cpu(
    data_ptrs: torch.Tensor, strides: torch.Tensor, target: torch.Tensor, source: torch.Tensor
) -> None:
    """Copy cache rows within every buffer; SGLang does so once at start where speculation is on.

    Args:
        data_ptrs: [buffers] addresses.
        strides: [buffers] bytes of a row.
        target, source: [rows] row numbers.
    """
    for buffer, stride in zip(data_ptrs.tolist(), strides.tolist(), strict=True):
        rows = [ctypes.string_at(buffer + row * stride, stride) for row in source.tolist()]
        for row, content in zip(target.tolist(), rows, strict=True):
            ctypes.memmove(buffer + row * stride, content, stride)


def _refusing(module: str, name: str) -> Callable[..., NoReturn]:
    def refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"{module}.{name} has no CPU stand-in in lim-sglang; run this feature on a GPU")

    return refuse


def _getattr(module: str, name: str) -> Any:
    """SGLang imports more ``*_cpu`` kernels, of speculative decoding at start, and calls none of them here."""
    if name.endswith("_cpu"):
        return _refusing(module, name)
    raise AttributeError(f"lim-sglang's stand-in for {module} has no {name}")


class Finder(MetaPathFinder, Loader):
    """Answers ``import sgl_kernel`` and ``import sgl_kernel.mamba`` with stand-ins; other submodules stay absent."""

    def find_spec(self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> Any:
        return ModuleSpec(fullname, self, is_package=fullname == NAME) if fullname in (NAME, MAMBA) else None

    def create_module(self, _spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module; ``sgl_kernel`` also fills ``torch.ops.sgl_kernel``, as the wheel does.

        SGLang imports it behind torch and ahead of all models and attention backends, some of which look ops up.
        """
        from lim_cpu_host import gated_delta_net

        module.__doc__ = __doc__
        module.__getattr__ = partial(_getattr, module.__name__)  # type: ignore[method-assign]
        kernels: Sequence[Callable[..., Any]] = gated_delta_net.MAMBA
        if module.__name__ == NAME:
            kernels = (assign_req_to_token_pool_cpu, copy_all_layer_kv_cache_cpu)
            gated_delta_net.register_ops()
        for kernel in kernels:
            setattr(module, kernel.__name__, kernel)
