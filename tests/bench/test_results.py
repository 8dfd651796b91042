"""Tables made again equal those in the pages; and what the committed results must show, whoever reads them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import tables
from bench.driver import read_rows
from bench.fidelity import report as fidelity
from bench.fidelity.acceptance import report as acceptance
from bench.speed import report as speed
from bench.tables import RESULTS
from lim_kernels.attend.config import HeadShape, verify_config


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: page.name)
def test_tables_made_again_are_those_of_the_page(page: Path) -> None:
    assert tables.filled(page.read_text()) == page.read_text(), "run python -m bench.tables"


def test_every_table_takes_its_place() -> None:
    """Whatever stood there goes, and what stands around it stays."""
    page = "a\n<!-- table: {0} -->\n{1}<!-- end table -->\nb\n<!-- table: {0} -->\n{1}<!-- end table -->\n"
    for name, make in tables.TABLES.items():
        assert tables.filled(page.format(name, "| old |\n")) == page.format(name, make())
        assert len(make().splitlines()) > 4, name


@pytest.mark.parametrize("report", [speed, fidelity, acceptance], ids=["speed", "fidelity", "acceptance"])
def test_pages_made_again_are_those_committed(report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (*RESULTS.glob("*.csv"), *RESULTS.glob("*.json")):
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.setattr("sys.argv", ["report", "--results", str(tmp_path)])
    report.main()
    [page] = tmp_path.glob("*.md")
    assert page.read_text() == (RESULTS / page.name).read_text()
    for plot in tmp_path.glob("*.png"):
        assert plot.read_bytes().startswith(b"\x89PNG")
        assert (RESULTS / plot.name).exists()


def test_verification_is_near_one_token_as_it_is_shipped() -> None:
    rows = read_rows(RESULTS / "verify_attention.csv")
    found = {(int(row["batch"]), int(row["context"]), int(row["tokens"])): row for row in rows}
    assert float(found[8, 32768, 8]["of_one_token"]) <= 1.10
    for row in rows:
        shipped = asdict(verify_config(HeadShape(128, 4, torch.bfloat16, torch.bfloat16, int(row["tokens"]))))
        names = ("block_n", "warps", "stages", "programs", "min_splits")
        assert {name: int(row[name]) for name in names} == {name: shipped[name] for name in names}


@pytest.mark.parametrize(("device", "least", "window"), [("cpu", 1200, 5), ("gpu", 300, 1)])
def test_the_soaks_lost_nothing(device: str, least: int, window: int) -> None:
    for mode, run in json.loads((RESULTS / f"soak_{device}.json").read_text()).items():
        assert [run[name] for name in ("lost", "stuck", "differing", "wrong")] == [0, 0, 0, []], mode
        assert run["healthy"], mode
        assert run["seconds"] >= least, mode
        assert run["retracted"] > 0, mode
        if mode in ("lim", "lossless"):
            assert run["leaked_tokens"] == 0, mode
            minutes = run["rss_mib_by_minute"]
            earlier = minutes[2 : 2 + window] if device == "cpu" else minutes[-2:-1]
            assert sum(minutes[-window:]) <= 1.01 * sum(earlier), "memory still grows"


def test_lossless_tokens_are_dense_attentions() -> None:
    rows = read_rows(RESULTS / "lossless_tokens.csv")
    assert len(rows) == 216
    assert all(row["equal"] == row["tokens"] == "128" for row in rows)


def test_the_lossless_mode_stays_ahead_once_it_drafts() -> None:
    """And costs nearly nothing before."""
    speedups = [float(row["speedup"]) for row in read_rows(RESULTS / "long_lossless.csv")]
    drafting = next(number for number, speedup in enumerate(speedups) if speedup > 1.01)
    assert drafting < len(speedups) / 2
    assert min(speedups[drafting:]) > 1.01
    assert min(speedups) >= 0.995
