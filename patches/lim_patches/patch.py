"""One hook on one SGLang name: declare, register, see whether it took, undo."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lim_cpu_host import is_active


@dataclass(frozen=True)
class Patch:
    """A hook that SGLang's ``HookRegistry`` applies.

    Attributes:
        target: Dotted path of the function or method.
        hook: ``after``: ``hook(result, *args, **kwargs)``, a value other than None replaces the result;
            ``around``: ``hook(original, *args, **kwargs)``.
        kind: See ``hook``.
        only_if_loaded: Module without which the patch is not wanted in this process, so that a hook never
            makes a process import what it does not use.
        only_on_cpu_host: Not wanted where the process may use a GPU.
        on_demand: Not wanted before something asks for it by ``apply_now``: until then its target, which would have to
            be imported, may never be needed. ``check_server_args`` and the lossless mode's worker ask.
    """

    target: str
    hook: Callable[..., Any]
    kind: Literal["after", "around"]
    only_if_loaded: str = ""
    only_on_cpu_host: bool = False
    on_demand: bool = False

    @property
    def wanted(self) -> bool:
        """By what the process has loaded so far and may use; ``registry.register`` asks once."""
        loaded = not self.only_if_loaded or self.only_if_loaded in sys.modules
        return loaded and not self.on_demand and self._fits_the_device

    @property
    def _fits_the_device(self) -> bool:
        return not self.only_on_cpu_host or is_active()

    def register(self) -> None:
        """Hand the hook to SGLang, which applies it after all plugins have run."""
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType

        HookRegistry.register(self.target, self.hook, HookType(self.kind))

    def apply_now(self) -> None:
        """Register and apply, once, however often it is asked for."""
        from sglang.srt.plugins.hook_registry import HookRegistry

        if self._fits_the_device and not self.applied:
            self.register()
            HookRegistry.apply_hooks()

    @property
    def applied(self) -> bool:
        from sglang.srt.plugins.hook_registry import HookRegistry

        return self.target in HookRegistry._patched

    def undo(self) -> None:
        """Put the original back everywhere SGLang put the wrapper, and forget the hook.

        Only for a process in which this project's hook is the only one on the target.
        """
        from sglang.srt.plugins.hook_registry import HookRegistry, _propagate_patch

        path, name = self.target.rsplit(".", 1)
        owner = pkgutil.resolve_name(path)
        current = vars(owner)[name]
        wrapper = getattr(current, "__func__", current)
        original = wrapper.__wrapped__
        setattr(owner, name, type(current)(original) if isinstance(current, classmethod | staticmethod) else original)
        _propagate_patch(wrapper, original, owner)
        HookRegistry._hooks.pop(self.target, None)
        HookRegistry._patched.discard(self.target)
