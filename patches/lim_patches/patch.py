"""One hook on one SGLang name: declare, register, see whether it took, undo."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lim_cpu_host import is_active
from lim_sglang.host.host_check import HostName, check


@dataclass(frozen=True)
class Patch:
    """A hook that SGLang's ``HookRegistry`` applies.

    Attributes:
        target: dotted path of the function or method.
        hook: ``after``: ``hook(result, *args, **kwargs)``, a value other than None replaces the result;
            ``around``: ``hook(original, *args, **kwargs)``.
        kind: see ``hook``.
        only_if_loaded: module without which the patch is not wanted in this process, so that a hook never
            makes a process import what it does not use.
        only_on_cpu_host: not wanted where the process may use a GPU.
        in_some_releases: not wanted where this SGLang has no such target: ``names.FORKS`` lists it.
    """

    target: str
    hook: Callable[..., Any]
    kind: Literal["after", "around"]
    only_if_loaded: str = ""
    only_on_cpu_host: bool = False
    in_some_releases: bool = False

    @property
    def wanted(self) -> bool:
        """Whether this process wants the patch, by what it has loaded so far and may use."""
        loaded = not self.only_if_loaded or self.only_if_loaded in sys.modules
        return loaded and (not self.only_on_cpu_host or is_active()) and self.has_target

    @property
    def has_target(self) -> bool:
        """Whether this SGLang has what a patch of some releases hooks; SGLang is not imported for it."""
        if not self.in_some_releases:
            return True
        module, owner, name = self.target.rsplit(".", 2)
        places = [HostName(module, f"{owner}.{name}"), HostName(f"{module}.{owner}", name)]  # a method, a function
        return any(verdict.ok for verdict in check(places))

    def register(self) -> None:
        """Hand the hook to SGLang, which applies it after all plugins have run."""
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType

        HookRegistry.register(self.target, self.hook, HookType(self.kind))

    @property
    def applied(self) -> bool:
        """Whether a call of the target reaches the hook; SGLang's own mark tells only that some hook was applied."""
        from sglang.srt.plugins.hook_registry import HookRegistry

        if self.target not in HookRegistry._patched:  # the target may be a module that is not imported yet
            return False
        _, _, function = self._find_target()
        while function is not None:
            if any(cell.cell_contents is self.hook for cell in getattr(function, "__closure__", None) or ()):
                return True
            function = getattr(function, "__wrapped__", None)
        return False

    def undo(self) -> None:
        """Put the original back everywhere SGLang put the wrapper, and forget the hook.

        Only for a process in which this project's hook is the only one on the target.
        """
        from sglang.srt.plugins.hook_registry import HookRegistry, _propagate_patch

        owner, current, wrapper = self._find_target()
        name, original = self.target.rsplit(".", 1)[1], wrapper.__wrapped__
        setattr(owner, name, type(current)(original) if isinstance(current, classmethod | staticmethod) else original)
        _propagate_patch(wrapper, original, owner)
        HookRegistry._hooks.pop(self.target, None)
        HookRegistry._patched.discard(self.target)

    def _find_target(self) -> tuple[Any, Any, Any]:
        """The target's module or class, what that holds under the target's name, and the function in it."""
        path, name = self.target.rsplit(".", 1)
        owner = pkgutil.resolve_name(path)
        held = vars(owner).get(name)
        return owner, held, getattr(held, "__func__", held)
