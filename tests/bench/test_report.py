"""The page made of results: every row's figures, plots that exist, nothing for a kernel that failed its check."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"
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


def report(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / "report.py"), "--results", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)


def test_measured_rows_are_shown_and_wrong_kernels_are_not(tmp_path: Path) -> None:
    measured = [ROW | {"batch": b, "context": c, "speedup": "2.571"} for b in ("1", "8") for c in ("8192", "32768")]
    wrong = ROW | {"batch": "16", "context": "8192", "speedup": "wrong set of request 0", "lim_us": "777"}
    write(tmp_path / "decode_attention.csv", [*measured, wrong])
    done = report(tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "speed.md").read_text()
    assert page.count("| 2.571 |") == 4
    assert "| 29.5 |" in page, "the kernel that serves is shown, not the other one"
    assert "777" not in page
    for name in ("speedup.png", "step.png", "byte_bound.png"):
        assert f"]({name})" in page
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_results_gets_one_line(tmp_path: Path) -> None:
    done = report(tmp_path)
    assert done.returncode == 2
    assert "run the benchmarks first" in done.stderr.splitlines()[-1]


def test_what_the_project_shows_is_what_its_results_say(tmp_path: Path) -> None:
    """The page in the repository was made from the files beside it."""
    for name in ("decode_attention.csv", "decode_engine.csv", "decode_attention.json", "decode_engine.json"):
        (tmp_path / name).write_text((BENCH / "results" / name).read_text())
    assert report(tmp_path).returncode == 0
    assert (tmp_path / "speed.md").read_text() == (BENCH / "results" / "speed.md").read_text()
