"""The page made of results: every row's figures, plots that exist, nothing for a kernel that failed its check."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.driver import write_rows
from bench.speed import report

ROW = {
    "gpu": "a GPU",
    "budget": "2048",
    "dense_us": "100.5",
    "select_us": "120.25",
    "attend_us": "110",
    "sparse_us": "30",
    "sparse_triton_us": "29.5",
    "step_dense_us": "3600",
    "lim_us": "1400",
    "byte_bound_share": "0.8",
    "select_beyond_dense": "0.197",
}


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["report", "--results", str(tmp_path)])


def test_measured_rows_are_shown_and_wrong_kernels_are_not(tmp_path: Path) -> None:
    measured = [ROW | {"batch": b, "context": c, "speedup": "2.571"} for b in ("1", "8") for c in ("8192", "32768")]
    wrong = ROW | {"batch": "16", "context": "8192", "speedup": "wrong set of request 0", "lim_us": "777"}
    write_rows(tmp_path / "decode_attention.csv", [*wrong], [*measured, wrong])
    report.main()
    page = (tmp_path / "speed.md").read_text()
    assert page.count("| 2.571 |") == 4
    assert "| 29.5 |" in page, "the kernel that serves is shown, not the other one"
    assert "777" not in page
    for name in ("speedup.png", "step.png", "byte_bound.png"):
        assert f"]({name})" in page
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_results_gets_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        report.main()
    assert "run the benchmarks first" in capsys.readouterr().err.splitlines()[-1]
