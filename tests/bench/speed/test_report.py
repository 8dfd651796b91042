"""The page made of results shows nothing for a kernel that failed its check."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.driver import read_rows, write_rows
from bench.speed import report


def test_measured_rows_are_shown_and_wrong_kernels_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["report", "--results", str(tmp_path)])
    row = read_rows(report.driver.RESULTS / "decode_attention.csv")[0]
    shown = row | {"speedup": "2.571", "sparse_us": "55.5", "sparse_triton_us": "29.5"}
    wrong = row | {"speedup": "wrong set of request 0", "lim_us": "777"}
    write_rows(tmp_path / "decode_attention.csv", [*row], [shown, wrong])
    report.main()
    page = (tmp_path / "speed.md").read_text()
    assert page.count("| 2.571 |") == 1
    assert "| 29.5 |" in page, "the kernel that serves is shown, not the other one"
    assert "777" not in page


def test_a_folder_without_results_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["report", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        report.main()
    assert "run the benchmarks first" in capsys.readouterr().err.splitlines()[-1]
