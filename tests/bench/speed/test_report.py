"""The page made of results: every row's figures, plots that exist, nothing for a kernel that failed its check."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[3] / "bench"
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
    command = [sys.executable, "-m", "bench.speed.report", "--results", str(folder)]
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


def test_a_step_taken_apart_and_a_long_generation_are_shown(tmp_path: Path) -> None:
    engine = {"gpu": "a GPU", "batch": "8", "context": "32000", "budget": "2048", "dense_ms": "20", "lim_ms": "10"}
    write(tmp_path / "decode_engine.csv", [engine | {"speedup": "2.0"}])
    profile = {"graph_us": 9000.5, "us_per_step": {"selection": 123.4, "everything else": 6000.0}}
    shapes = {"8x32000": {"ms": [10], "profile": profile}, "1x32000": {"ms": [7]}}
    facts = {
        "about": {"gpu": "a GPU"},
        "arms": {"dense": [], "lim": [{"shapes": shapes, "host_us_per_step": {"dense": 251.5, "lim": 290.25}}]},
    }
    (tmp_path / "decode_engine.json").write_text(json.dumps(facts))
    row = {"gpu": "a GPU", "batch": "16", "budget": "2048", "dense_ms": "9", "lim_ms": "8", "speedup": "1.125"}
    write(tmp_path / "long_decode.csv", [row | {"context": context} for context in ("1000", "4000")])
    names = ("dense_s", "lim_s", "speedup", "ahead_from_context", "lowest_speedup", "same_tokens_within_budget")
    (tmp_path / "long_decode.json").write_text(json.dumps({"about": {}, "summary": dict.fromkeys(names, 17.5)}))
    done = report(tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "speed.md").read_text()
    assert "| lim, 8 × 32000 | 9000.5 | 6000.0 | 123.4 |" in page
    assert "in lim's engine: 290.25 µs, of which the dense backend's is 251.5 µs." in page
    assert page.count("| 1.125 |") == 2
    assert "17.5×" in page
    assert (tmp_path / "long_decode.png").read_bytes().startswith(b"\x89PNG")
