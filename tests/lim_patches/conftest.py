"""Hooks put on and taken off again, whatever other tests of the process have loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lim_patches.patch import Patch


def switch(patches: Sequence[Patch], on: bool) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry

    for patch in patches:
        if on:
            patch.register()
        else:
            patch.undo()
    HookRegistry.apply_hooks()


@contextmanager
def switched(patches: Sequence[Patch], on: bool) -> Iterator[None]:
    """A block in which these hooks are on SGLang, or are not."""
    changed = [patch for patch in patches if patch.applied != on]
    switch(changed, on)
    yield
    switch(changed, not on)
