"""Hands patches to SGLang and sees to it that they took, whenever they are applied."""

from __future__ import annotations

from collections.abc import Iterable

from lim_patches.patch import Patch
from lim_sglang.host.refusals import UnsupportedError

_registered: list[Patch] = []


def register(patches: Iterable[Patch]) -> None:
    """Hand SGLang those of ``patches`` that this process wants, each once; it applies them after all plugins ran."""
    for patch in patches:
        if patch.wanted and not is_registered(patch):
            patch.register()
            _registered.append(patch)


def apply(patches: Iterable[Patch]) -> None:
    """Register ``patches`` and apply them at once, where their targets would otherwise be imported for nothing.

    Raises:
        UnsupportedError: as ``check``, for these patches.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry

    patches = tuple(patches)
    register(patches)
    HookRegistry.apply_hooks()
    check(filter(is_registered, patches))


def is_registered(patch: Patch) -> bool:
    """Whether this process wanted the patch when it was to be registered."""
    return patch in _registered


def check(patches: Iterable[Patch] | None = None) -> None:
    """See that patches took, all that this process registered unless some are named.

    Raises:
        UnsupportedError: one line with the targets that SGLang could not patch or another plugin took back.
    """
    missing = [patch.target for patch in (_registered if patches is None else patches) if not patch.applied]
    if missing:
        raise UnsupportedError(
            f"not patched: {', '.join(missing)}; another plugin may hold it (SGLANG_PLUGINS=lim leaves others out), "
            "run `lim-sglang doctor`"
        )
