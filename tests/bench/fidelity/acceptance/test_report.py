"""The page says what the rows say."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from bench.fidelity.acceptance import report
from bench.fidelity.acceptance.__main__ import COLUMNS

ACCEPTED = {"lim steps": {"a": 3.0, "b": 2.0}, "kept sets": {"a": 2.5, "b": 1.0}, "window": {"a": 1.0, "b": 1.75}}
FACTS = {"model": "toy", "plan": [2, 17], "tokens": 30, "every": 8, "most_drafts": 4}


def rows(text: str) -> list[list[str]]:
    """Of one prompt: greedy at k = 4, half of it at k = 2; a tenth less at temperature 1, half with greedy drafts."""
    found = []
    for temperature, factor, greedy in (("0", 1.0, 1.0), ("1", 0.9, 0.5)):
        for kind in ACCEPTED:
            for k, share in ((2, 0.5), (4, 1.0)):
                accepted = ACCEPTED[kind][text] * factor * share
                numbers = [f"{accepted:.6g}", f"{accepted * greedy:.6g}"]
                found.append([text, "1000", "0", temperature, kind, "256", str(k), *numbers])
    return found


def page(folder: Path, content: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> str:
    with (folder / "acceptance.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *content])
    (folder / "acceptance.json").write_text(json.dumps(FACTS))
    monkeypatch.setattr("sys.argv", ["report", "--results", str(folder)])
    report.main()
    assert (folder / "acceptance.png").stat().st_size > 10_000
    return (folder / "acceptance.md").read_text()


def test_cells_are_means_over_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = page(tmp_path, rows("a") + rows("b"), monkeypatch)
    greedy, drawn, instead = re.findall(r"^\| lim steps \| 256 \| (.*) \|$", found, re.MULTILINE)
    assert greedy == "1.25 (1.00 to 1.50) | 2.50 (2.00 to 3.00)"
    assert drawn == "1.12 (0.90 to 1.35) | 2.25 (1.80 to 2.70)"
    assert instead == "0.56 (0.45 to 0.68) | 1.12 (0.90 to 1.35)"
    assert "| lim steps − kept sets | 0 | 256 | 0.38 (0.25 to 0.50) | 0.75 (0.50 to 1.00) |" in found
    assert "| kept sets − window | 0 | 256 | 0.19 (-0.38 to 0.75) | 0.38 (-0.75 to 1.50) |" in found
    assert "## By text, K = 256, k = 4" in found
    assert "| b | 2.00 | 1.00 | 1.75 | 1.80 | 0.90 | 1.57 |" in found
    assert "| 1000 | 2.50 | 1.75 | 1.38 |" in found
    for words in ("Behind 2 prompts of 1,000 tokens (a, b)", "wrote 30 tokens", "4 rounds start in each"):
        assert words in found


def test_a_prompt_cut_short_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = page(tmp_path, rows("a") + rows("b")[:-1], monkeypatch)
    assert "| lim steps | 256 | 1.50 (1.50 to 1.50) | 3.00 (3.00 to 3.00) |" in found
    assert "Behind 1 prompts" in found


def test_without_rows_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        page(tmp_path, [], monkeypatch)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("holds no prompt with everything measured; run python -m bench.fidelity.acceptance first")
