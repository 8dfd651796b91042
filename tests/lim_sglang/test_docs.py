"""The pages for users name only what the code says, and every counter there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lim_sglang.config import LimConfig
from lim_sglang.host.support import REFUSALS
from lim_sglang.layer_plan import LayerPlan
from lim_sglang.metrics import DecodeMetrics

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "lim_sglang" / "docs"


def first_cells(page: str, heading: str) -> list[str]:
    """What stands in code marks in the first column of the table with this heading."""
    table = (DOCS / page).read_text().split(heading, 1)[1].split("\n\n", 1)[0]
    return [match for line in table.splitlines() for match in re.findall(r"^\| `([^`]+)`", line)]


def test_every_message_of_the_page_is_one_of_ours() -> None:
    messages = first_cells("troubleshooting.md", "| the line contains |")
    folders = ("lim_sglang", "patches", "kernels")
    source = "\n".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)  # messages are split over lines
    assert len(messages) > 8
    assert [message for message in messages if message not in joined] == []


def test_the_readme_lists_every_refusal() -> None:
    table = (ROOT / "README.md").read_text().split("| refused | why |")[1].split("\n\n", 1)[0]
    listed = re.findall(r"^\| (?!-)(.+?) \|", table.split("\n", 2)[2], re.M)
    stages = "a pipeline stage without a select layer"  # found by the layer plan
    assert sorted(listed) == sorted([*(refusal.feature for refusal in REFUSALS), stages])


def test_every_counter_is_explained() -> None:
    report = DecodeMetrics(LimConfig(), LayerPlan.from_select_layers(6, (2,))).report()
    assert first_cells("metrics.md", "| key |") == list(report)
    assert sorted(first_cells("metrics.md", "| counter |")) == sorted(report["counters"])


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#([^)]+))?\)", page.read_text())
    assert links or page.name == "metrics.md"
    for target, anchor in links:
        if target.startswith("http"):
            continue
        found = (page.parent / target).resolve()
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(), re.M)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings]
