"""Each hook on SGLang: listed, applied, and fully undone."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lim_patches
from lim_patches.registry import PATCHES

FOLDER = Path(lim_patches.__file__).parent
LEDGER = FOLDER.parent / "README.md"
INFRASTRUCTURE = {"__init__.py", "__main__.py", "patch.py", "registry.py"}


def test_ledger_lists_exactly_the_patches_there_are() -> None:
    files = {str(p.relative_to(FOLDER)) for p in FOLDER.rglob("*.py") if p.name not in INFRASTRUCTURE}
    rows = re.findall(r"^\| `([\w/]+\.py)` \|(.*)\|$", LEDGER.read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == files
    for name, row in rows:
        cells = [cell.strip() for cell in row.split("|")]
        assert len(cells) == 5, name
        assert all(cells), f"{name} has an empty cell"


def test_every_patch_file_is_registered() -> None:
    single_files = {p.stem for p in FOLDER.glob("*.py") if p.name not in INFRASTRUCTURE}
    assert {patch.hook.__module__.split(".")[-1] for patch in PATCHES} == single_files


def raw(target: str) -> Any:
    """The object as the owner holds it, descriptors included."""
    path, name = target.rsplit(".", 1)
    return vars(pkgutil.resolve_name(path))[name]


def underlying(target: str) -> Any:
    found = raw(target)
    return getattr(found, "__func__", found)


@pytest.fixture
def unpatched() -> Iterator[None]:
    """A host without our hooks, whatever other tests of this process have loaded."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    applied = [patch for patch in PATCHES if patch.applied]
    for patch in applied:
        patch.undo()
    yield
    for patch in applied:
        patch.register()
    HookRegistry.apply_hooks()


@pytest.mark.usefixtures("unpatched")
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.target.rsplit(".", 1)[1])
def test_a_patch_applies_and_undoes_fully(patch: Any) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry

    before, kind = underlying(patch.target), type(raw(patch.target))
    patch.register()
    HookRegistry.apply_hooks()
    assert patch.applied
    assert underlying(patch.target) is not before
    patch.undo()
    assert not patch.applied
    assert underlying(patch.target) is before
    assert type(raw(patch.target)) is kind
    assert patch.target not in HookRegistry._hooks


@pytest.mark.usefixtures("unpatched")
def test_undo_restores_names_that_other_modules_imported() -> None:
    from sglang.srt.mem_cache import allocation
    from sglang.srt.plugins.hook_registry import HookRegistry

    from lim_patches.cpu.support_triton import PATCH

    before = allocation.support_triton
    PATCH.register()
    HookRegistry.apply_hooks()
    assert allocation.support_triton is not before
    PATCH.undo()
    assert allocation.support_triton is before


def test_importing_the_package_changes_nothing() -> None:
    code = (
        "import sys; path, modules = list(sys.meta_path), set(sys.modules)\n"
        "import lim_patches.registry\n"
        "assert sys.meta_path == path\n"
        "print([m for m in set(sys.modules) - modules if m.split('.')[0] in ('sglang', 'torch')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert found.stdout.strip() == "[]", found.stderr
