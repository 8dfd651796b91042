"""How the plugin speaks: every line a user sees starts with the same prefix and fits one line."""

from __future__ import annotations

import sys
from typing import NoReturn

PREFIX = "lim-sglang"


def one_line(text: str) -> str:
    """``text`` with every run of white space, line breaks included, as one space."""
    return " ".join(text.split())


def exit_with(message: str, code: int = 1) -> NoReturn:
    """Print one error line on stderr and leave the process with ``code``.

    Raises:
        SystemExit: always; unlike an ``Exception`` it passes SGLang's plugin loader.
    """
    print(f"{PREFIX}: error: {one_line(message)}", file=sys.stderr, flush=True)
    raise SystemExit(code)
