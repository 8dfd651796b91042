"""The pages for users name only what the code says, and every counter there is."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lim_sglang.config import FLAGS, LimConfig
from lim_sglang.layer_plan import LayerPlan
from lim_sglang.metrics import DecodeMetrics

from .info_server import serving
from .recorded_state import LIM_AFTER

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "lim_sglang" / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


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


def test_the_readme_is_short_and_names_every_page() -> None:
    readme = README.read_text()
    assert len(readme.splitlines()) <= 170
    assert [page.name for page in DOCS.glob("*.md") if f"](lim_sglang/docs/{page.name})" not in readme] == []


def test_every_key_is_in_the_readme() -> None:
    table = README.read_text().split("| key | flag |")[1].split("\n\n", 1)[0]
    shown = re.findall(r"^\| `(\w+)` \| `([\w-]+)` \| `?([^`|]+)`? \|", table, re.M)
    defaults = {key: json.dumps(value) for key, value in LimConfig().to_dict().items()}
    assert {key: default.strip() for key, _, default in shown} == defaults
    assert {key: flag for key, flag, _ in shown} == FLAGS


def test_every_counter_is_explained() -> None:
    metrics = DecodeMetrics(LimConfig(), LayerPlan.from_select_layers(6, (2,)))
    metrics.add_rounds()
    report = metrics.report()
    assert first_cells("metrics.md", "| key |") == list(report)
    assert sorted(first_cells("metrics.md", "| counter |")) == sorted(report["counters"])
    assert first_cells("metrics.md", "| total |") == list(report["counters"]["lossless"])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", page.read_text()):
        if target.startswith("http"):
            continue
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]


def test_the_command_for_counters_adds_ranks_up_and_sends_the_key() -> None:
    block = (DOCS / "metrics.md").read_text().split("```bash\n")[1].split("```")[0]
    info = {"internal_states": [{"lim": LIM_AFTER}, {"lim": LIM_AFTER}]}
    with serving({"/server_info": info}, key="k") as server:
        assert "http://127.0.0.1:30000" in block
        program, *words = shlex.split(block.replace("http://127.0.0.1:30000", server.url))
        assert program == "python"
        run = {"env": os.environ | {"OPENAI_API_KEY": "k"}, "capture_output": True, "text": True, "timeout": 300}
        done = subprocess.run([sys.executable, *words], **run)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    assert ast.literal_eval(done.stdout)["counters"]["decode_rows"] == 2 * LIM_AFTER["counters"]["decode_rows"]
