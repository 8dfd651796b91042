"""Tables in the pages are those that the code makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lim_sglang.config import KEYS
from lim_sglang.host.refusals import REFUSALS
from lim_sglang.tools.support_page import filled, keys, pages, refusals


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_a_page_made_again_equals_the_committed_one(page: Path) -> None:
    assert filled(page.read_text()) == page.read_text()


def test_the_list_of_refusals_is_on_a_page() -> None:
    [page] = [page for page in pages() if "<!-- refusals -->" in page.read_text()]
    lines = page.read_text().splitlines()
    assert all(f"| {refusal.feature} | {refusal.reason} |" in lines for refusal in REFUSALS)


def test_a_table_that_is_out_of_date_is_replaced() -> None:
    page = "# Title\n\n<!-- refusals -->\nan old row\n<!-- /refusals -->\n\n<!-- keys -->\n<!-- /keys -->\nend\n"
    made = filled(page)
    assert filled(made) == made
    assert refusals() in made
    assert keys() in made
    assert "an old row" not in made
    assert made.startswith("# Title\n")
    assert made.endswith("\nend\n")
    assert all(f"| `{key}` |" in made for key in KEYS)
