"""Tables that pages make of the code: ``python -m lim_sglang.tools.support_page [--write]``, in a checkout.

``refusals`` is what ``lim`` and its lossless mode refuse, ``keys`` the configuration. Between ``<!-- NAME -->`` and
``<!-- /NAME -->``, in the README and in every page of ``lim_sglang/docs``, ``--write`` puts the table of that name.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from lim_sglang.config import FLAGS, KEYS, LimConfig
from lim_sglang.host.finders import BACKEND
from lim_sglang.host.refusals import REFUSALS

ROOT = Path(__file__).parents[2]


def refusals() -> str:
    """What is refused, and why: with lim, then in the lossless mode alone."""
    parts = {
        "With lim, in the lossless mode as well:": [r for r in REFUSALS if r.mode == BACKEND],
        "In the lossless mode alone:": [r for r in REFUSALS if r.mode != BACKEND],
    }
    rows = {title: [(r.feature, r.reason) for r in found] for title, found in parts.items()}
    return "\n\n".join(f"{title}\n\n{_table(('refused', 'why'), found)}" for title, found in rows.items())


def keys() -> str:
    """The configuration: key, flag, default, what is allowed, what it sets."""
    rows = [
        (f"`{name}`", f"`{FLAGS[name]}`", f"`{getattr(LimConfig, name)}`", key.allowed, key.help)
        for name, key in KEYS.items()
    ]
    return _table(("key", "flag", "default", "allowed", "what it sets"), rows)


def filled(text: str) -> str:
    """A page's text with its tables made again."""
    for name, table in {"refusals": refusals, "keys": keys}.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        made = table().replace("\\", r"\\")
        text = block.sub(rf"\1\n{made}\n\n\2", text)
    return text


def pages() -> list[Path]:
    """The files that may hold such tables."""
    return [ROOT / "README.md", *sorted((ROOT / "lim_sglang" / "docs").glob("*.md"))]


def _table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        for page in pages():
            page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(refusals(), keys(), sep="\n\n")
