"""Hooks put on and taken off again, whatever other tests of the process have loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import pytest

from lim_patches.patch import Patch

Change = Callable[[Sequence[Patch]], AbstractContextManager[None]]


def put_on(patches: Sequence[Patch]) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry

    for patch in patches:
        patch.register()
    HookRegistry.apply_hooks()


@pytest.fixture(scope="session")
def hooked() -> Change:
    """A block in which these hooks are on SGLang."""

    @contextmanager
    def change(patches: Sequence[Patch]) -> Iterator[None]:
        missing = [patch for patch in patches if not patch.applied]
        put_on(missing)
        yield
        for patch in missing:
            patch.undo()

    return change


@pytest.fixture(scope="session")
def unhooked() -> Change:
    """A block in which they are not."""

    @contextmanager
    def change(patches: Sequence[Patch]) -> Iterator[None]:
        applied = [patch for patch in patches if patch.applied]
        for patch in applied:
            patch.undo()
        yield
        put_on(applied)

    return change
