"""The tables of figures in the project's pages, made from the files in bench/results.

    python -m bench.tables

A table stands between ``<!-- table: NAME -->`` and ``<!-- end table -->``, NAME one of ``TABLES``; the command writes
all of them anew, in README.md, lim_sglang/docs and bench/results. Whole pages are made by ``bench.speed.report``,
``bench.fidelity.report`` and ``bench.fidelity.acceptance.report``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import driver
from bench.driver import markdown, read_rows

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
BLOCK = re.compile(r"(?<=<!-- table: )([\w-]+)( -->\n).*?(?=<!-- end table -->)", re.DOTALL)
STEPS = ("batch × context, K = 2,048", "dense FlashInfer", "lim", "")
LOSSLESS = ("GPU", "batch × context", "drafts accepted as SmolLM2's,", "dense", "lossless", "speed-up")
BY_COPIES = ("lossless_int8", "lossless_int8_tp2")
BY_MODEL = ("lossless_large", "lossless", "lossless_tp2")
Cells = tuple[str, ...]
FileRow = dict[str, str]


def main() -> None:
    driver.parser(__doc__).parse_args()
    for page in pages():
        before = page.read_text()
        after = filled(before)
        if after != before:
            page.write_text(after)
            print(page.relative_to(ROOT))


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted(ROOT.glob("lim_sglang/docs/*.md")), *sorted(RESULTS.glob("*.md"))]


def filled(text: str) -> str:
    """A page with its tables made anew; a KeyError names a table that nothing makes."""
    return BLOCK.sub(lambda found: f"{found[1]}{found[2]}{TABLES[found[1]]()}", text)


def ms(text: str) -> str:
    """Milliseconds to three digits that count: ``26.5``, ``9.86``."""
    value = float(text)
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def shape(row: FileRow) -> str:
    within = " (within the budget)" if int(row["context"]) < int(row["budget"]) else ""
    return f"{row['batch']} × {int(row['context']):,}{within}"


def step_cells(rows: Iterable[FileRow]) -> list[Cells]:
    """Shape, both times to 0.01 ms, and the speed-up; the first row says what they are."""
    found: list[Cells] = []
    for number, row in enumerate(rows):
        dense, lim, speedup = (float(row[name]) for name in ("dense_ms", "lim_ms", "speedup"))
        found.append((shape(row), f"{dense:.2f}{'' if number else ' ms per step'}", f"{lim:.2f}", f"{speedup:.2f}×"))
    return found


def steps() -> str:
    found = json.loads((RESULTS / "long_decode.json").read_text())["summary"]
    label = "16 requests that generate 16,384 tokens each"
    long = label, f"{found['dense_s']:.1f} s", f"{found['lim_s']:.1f} s", f"{found['speedup']:.2f}×"
    return markdown(STEPS, [*step_cells(read_rows(RESULTS / "decode_engine.csv")), long])


def several_gpus(file: str, title: str) -> str:
    rows, found, before = read_rows(RESULTS / file), [], ""
    for row, cells in zip(rows, step_cells(rows), strict=True):
        attended = ", DP attention" if row.get("dp", "1") != "1" else ""
        layers = f", {row['layers']} layers" if " of " in row.get("layers", "") else ""
        model = row["model"] + layers + attended
        found.append(("" if model == before else model, *cells))
        before = model
    return markdown((title, "batch × context", "dense", "lim", ""), found)


def lossless_rows(files: Sequence[str]) -> list[FileRow]:
    """Rows of an acceptance that was measured, one H200 before two.

    Where nothing is drafted, temperature 1 makes no difference, and the greedy row speaks for both.
    """
    rows = [row for file in files for row in read_rows(RESULTS / f"{file}.csv")]
    shown = [row for row in rows if row["measured"] == "greedy" or (row["measured"] and float(row["drafts"]))]
    return sorted(shown, key=lambda row: (row["tp"], row["measured"] != "greedy"))


def lossless_cells(rows: Iterable[FileRow]) -> list[Cells]:
    """Milliseconds per token and the speed-up; below 1 with a digit more."""
    found: list[Cells] = []
    for row in rows:
        gpu = row["gpu"].removeprefix("NVIDIA ")
        of_gpus = gpu if row["tp"] == "1" else f"{row['tp']} × {gpu}"
        drafts = "greedy" if row["measured"] == "greedy" else f"at {row['measured']}"
        speedup = float(row["speedup"])
        shown = f"{speedup:.2f}" if speedup >= 1 else f"{speedup:.3f}"
        size = f"{row['batch']} × {int(row['context']):,}"
        found.append((of_gpus, size, drafts, ms(row["dense_ms"]), ms(row["lossless_ms"]), shown))
    return found


def lossless() -> str:
    chosen = {("1", "16", "40000"), ("1", "8", "32000"), ("1", "16", "1500")}
    rows = [row for row in lossless_rows(BY_COPIES) if (row["tp"], row["batch"], row["context"]) in chosen]
    return markdown(LOSSLESS, lossless_cells(row for row in rows if row["measured"] == "greedy"))


def all_lossless(files: Sequence[str]) -> str:
    rows = lossless_rows(files)
    order = list(dict.fromkeys((row["tp"], row["batch"], row["context"]) for row in rows))
    rows.sort(key=lambda row: order.index((row["tp"], row["batch"], row["context"])))
    found, before = [], None
    for cells in lossless_cells(rows):
        found.append(("", "", *cells[2:]) if cells[:2] == before else cells)
        before = cells[:2]
    return markdown(LOSSLESS, found)


def serving() -> str:
    found = []
    for title, file, workload in (
        ("random prompts", "random", "random"),
        ("two shared prefixes", "shared_prefix", "shared-prefix"),
    ):
        rows = [row for row in read_rows(RESULTS / f"serving_h100_{file}.csv") if row["workload"] == workload]
        by_arm = {(row["attention"], row["rate"]): row for row in rows}
        for rate, called in (("1", "1"), ("inf", "all at once")):
            arms = [by_arm[attention, rate] for attention in ("dense", "lim")]
            tokens = [f"{float(arm['output_throughput']):,.0f}" for arm in arms]
            between = [f"{float(arm['mean_itl_ms']):.1f} ms" for arm in arms]
            first = [f"{ms(str(float(arm['mean_ttft_ms']) / 1e3))} s" for arm in arms]
            found.append((title, called, *tokens, *between, *first))
    headings = ("output tokens/s", "time between tokens", "time to first token")
    columns = [part for heading in headings for part in (f"{heading}, dense", "lim")]
    return markdown(("", "requests/s", *columns), found)


SOAK = {
    "requests": "requests",
    "aborted by the client": "aborted",
    "refused, as they should be": "bad_inputs",
    "retracted": "retracted",
    "lost": "lost",
    "stuck": "stuck",
    "leaked tokens": "leaked_tokens",
    "answers asked for again": "replayed",
    "their tokens that are equal": "equal_tokens",
    "answers that part at a near-tie": "near_ties",
    "answers that differ otherwise": "differing",
}


def soak() -> str:
    """A column per run, a row per figure."""
    runs: dict[str, dict[str, Any]] = {}
    for device, file in (("CPU", "soak_cpu"), ("H100", "soak_gpu")):
        found = json.loads((RESULTS / f"{file}.json").read_text())
        runs |= {f"{device}, {mode}": found[mode] for mode in ("lim", "lossless")}
    rows = [("minutes", *(f"{run['seconds'] / 60:.0f}" for run in runs.values()))]
    rows += [(label, *(f"{run[name]:,}" for run in runs.values())) for label, name in SOAK.items()]
    whole = (f"{run['rss_growth_mib']:+,}" for run in runs.values())
    rows.append(("resident memory, first request to last, MiB", *whole))
    minutes = (run["rss_mib_by_minute"] for run in runs.values())  # modules are loaded after the first one
    rows.append(("resident memory, second minute to last, MiB", *(f"{of[-1] - of[1]:+}" for of in minutes)))
    return markdown(("", *runs), rows)


TABLES: dict[str, Callable[[], str]] = {
    "steps": steps,
    "steps-newest": lambda: markdown(STEPS, step_cells(read_rows(RESULTS / "decode_engine_0_5_23.csv"))),
    "two-gpus": lambda: several_gpus("tp2.csv", "two H100, `--tp 2`"),
    "four-gpus": lambda: several_gpus("tp4.csv", "four H200, `--tp 4`"),
    "lossless": lossless,
    "lossless-all": lambda: all_lossless(BY_COPIES),
    "lossless-model-weights": lambda: all_lossless(BY_MODEL),
    "serving": serving,
    "soak": soak,
}


if __name__ == "__main__":
    main()
