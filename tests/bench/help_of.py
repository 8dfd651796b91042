"""``python -m MODULE --help``, run in this process, where its libraries are loaded already."""

from __future__ import annotations

import io
import runpy
import sys
from contextlib import redirect_stdout
from functools import cache

import pytest


@cache
def help_of(module: str) -> str:
    """What it prints; it ends with 0."""
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(shown):
        patch.setattr(sys, "argv", [module, "--help"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert ended.value.code == 0
    return shown.getvalue()
