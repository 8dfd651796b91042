"""Which releases of SGLang this project says it was tested with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lim_sglang.host import versions

SUPPORT = (Path(__file__).parents[3] / "lim_sglang/docs/support.md").read_text()


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "TESTED_SGLANG", {"cpu": ("0.5.9", "0.5.16", "0.5.23"), "cuda": ("0.5.16",)})


@pytest.mark.usefixtures("tested")
@pytest.mark.parametrize(
    ("found", "device", "doubt"),
    [
        ("0.5.16", "cuda", ""),
        ("0.5.16.post1+cu130", "cuda", ""),
        ("0.5.23", "cpu", ""),
        ("0.5.23", "cuda", "tested on a CPU only; untested on a GPU (tested there: 0.5.16)"),
        ("0.5.18", "cpu", "untested on a CPU (tested there: 0.5.9, 0.5.16, 0.5.23)"),
    ],
)
def test_only_what_ran_counts_as_tested(found: str, device: str, doubt: str) -> None:
    """A release between two tested ones is none of them."""
    assert versions.untested(found, device) == doubt


@pytest.mark.usefixtures("tested")
def test_the_range_is_ordered_by_number() -> None:
    assert versions.supported_range() == "sglang>=0.5.9,<=0.5.23"


def test_the_page_on_support_lists_the_same() -> None:
    shown = dict(re.findall(r"^\| (CPU|NVIDIA GPU) \| ([\d., ]+) \|", SUPPORT, re.MULTILINE))
    named = {"CPU": "cpu", "NVIDIA GPU": "cuda"}
    assert {named[title]: tuple(releases.split(", ")) for title, releases in shown.items()} == versions.TESTED_SGLANG
