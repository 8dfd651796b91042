"""Each hook on SGLang: listed, applied, and fully undone."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lim_patches
from lim_patches.cpu import support_triton
from lim_patches.ledger import LOSSLESS, PATCHES, START
from lim_patches.patch import Patch

from .conftest import switch, switched

FOLDER = Path(lim_patches.__file__).parent
LEDGER = FOLDER.parent / "README.md"
INFRASTRUCTURE = {"__init__.py", "__main__.py", "ledger.py", "patch.py", "registry.py"}


def test_ledger_lists_exactly_the_patches_there_are() -> None:
    """What was offered upstream, or why it was not, too."""
    paths = FOLDER.parent.rglob("*.py")
    files = {str(path.relative_to(FOLDER.parent)) for path in paths if path.name not in INFRASTRUCTURE}
    rows = re.findall(r"^\| `([\w/]+\.py)` .*\| (https://\S|not offered, because )", LEDGER.read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == files


def test_every_patch_file_is_in_the_room_that_applies_it() -> None:
    modules = {".".join(path.relative_to(FOLDER.parent).with_suffix("").parts) for path in FOLDER.glob("*/[a-z]*.py")}
    assert {patch.hook.__module__ for patch in PATCHES} == modules
    assert {patch.hook.__module__.split(".")[1] for patch in START} == {"start", "cpu"}
    assert {patch.hook.__module__.split(".")[1] for patch in LOSSLESS} == {"lossless"}


def raw(target: str) -> Any:
    """The object as the owner holds it, descriptors included."""
    path, name = target.rsplit(".", 1)
    return vars(pkgutil.resolve_name(path))[name]


def underlying(target: str) -> Any:
    found = raw(target)
    return getattr(found, "__func__", found)


@pytest.mark.parametrize(
    "patch", [patch for patch in PATCHES if patch.has_target], ids=lambda patch: patch.target.rsplit(".", 1)[1]
)
def test_a_patch_applies_and_undoes_fully(patch: Patch) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry

    with switched(PATCHES, on=False):
        before, kind = underlying(patch.target), type(raw(patch.target))
        switch([patch], on=True)
        assert patch.applied
        assert underlying(patch.target) is not before
        patch.undo()
        assert not patch.applied
        assert underlying(patch.target) is before
        assert type(raw(patch.target)) is kind
        assert patch.target not in HookRegistry._hooks


def test_undo_restores_names_that_other_modules_imported() -> None:
    from sglang.srt.mem_cache import allocation

    with switched([support_triton.PATCH], on=False):
        before = allocation.support_triton
        switch([support_triton.PATCH], on=True)
        assert allocation.support_triton is not before
        support_triton.PATCH.undo()
        assert allocation.support_triton is before


def test_importing_the_package_changes_nothing() -> None:
    code = (
        "import sys; path, modules = list(sys.meta_path), set(sys.modules)\n"
        "import lim_patches.ledger, lim_patches.registry\n"
        "assert sys.meta_path == path\n"
        "print([m for m in set(sys.modules) - modules if m.split('.')[0] in ('sglang', 'torch')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert found.stdout.strip() == "[]", found.stderr
