"""The README's figures are those of the files in bench/results."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import asdict
from pathlib import Path

import torch

from lim_kernels.attend.config import HeadShape, verify_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "bench" / "results"


def rows_of(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def same(shown: str, value: float) -> bool:
    """Whether the first number of ``shown`` is ``value``, rounded to as many digits."""
    number = re.search(r"[\d,]+(?:\.\d+)?", shown)
    assert number, shown
    text = number[0].replace(",", "")
    half = 0.5 * 10.0 ** -len(text.partition(".")[2])
    return abs(float(text) - value) <= half * 1.0001


def test_rounding_is_checked() -> None:
    assert same("1,043", 1042.86)
    assert same("2.12×", 2.117)
    assert not same("2.12×", 2.109)
    assert not same("24.2 ms", 24.26)


def test_steps_of_the_engine() -> None:
    found = {(int(row["batch"]), int(row["context"])): row for row in rows_of("decode_engine.csv")}
    shown = re.findall(r"^\| (\d+) × ([\d,]+)[^|]*(\|.*)$", README, re.MULTILINE)
    assert len(shown) == len(found)
    for batch, context, rest in shown:
        row = found[int(batch), int(context.replace(",", ""))]
        for cell, name in zip(cells(rest), ("dense_ms", "lim_ms", "speedup"), strict=True):
            assert same(cell, float(row[name])), (batch, context, cell)


def test_the_newest_sglang() -> None:
    [shown] = re.findall(r"SGLang 0\.5\.23 with [^×]* gave ([^f]+) for the four shapes", " ".join(README.split()))
    found = [float(row["speedup"]) for row in rows_of("decode_engine_0_5_23.csv")]
    assert all(same(text, value) for text, value in zip(re.split(", | and ", shown), found, strict=True))
    facts = json.loads((RESULTS / "decode_engine_0_5_23.json").read_text())["about"]
    assert facts["sglang"] == "0.5.23"
    assert "in place of" in facts["note"]


def test_the_soak() -> None:
    [text] = re.findall(r"Twenty minutes of the soak on a CPU.*?soak_cpu\.json", " ".join(README.split()))
    shown = re.findall(r"(\d+) and (\d+) (?:requests|of which|refused|retractions|greedy|MiB)", text)
    found = json.loads((RESULTS / "soak_cpu.json").read_text())
    names = ("requests", "aborted", "bad_inputs", "retracted", "replayed", "rss_growth_mib")
    assert shown == [(str(found["lim"][name]), str(found["lossless"][name])) for name in names]
    [tokens] = re.findall(r"from an empty cache: ([\d,]+) and ([\d,]+) tokens", text)
    assert [int(count.replace(",", "")) for count in tokens] == [run["equal_tokens"] for run in found.values()]
    for mode in ("lim", "lossless"):
        assert [found[mode][name] for name in ("lost", "stuck", "leaked_tokens", "differing")] == [0, 0, 0, 0], mode
        assert found[mode]["near_ties"] == 0, mode
        assert found[mode]["seconds"] >= 1200, mode
        assert found[mode]["retracted"] > 0, mode
        minutes = found[mode]["rss_mib_by_minute"]
        assert sum(minutes[-5:]) <= 1.01 * sum(minutes[2:7]), "memory still grows"


def test_the_soak_on_a_gpu() -> None:
    text = " ".join(README.split())
    found = json.loads((RESULTS / "soak_gpu.json").read_text())
    [shown] = re.findall(
        r"nearly full: ([\d,]+) requests to lim, a quarter .* and ([\d,]+) to the lossless mode, .* where (\d+) % of "
        r"([\d,]+) drafts were rejected\. .* leaked; (\d+) and (\d+) greedy answers .* \(([\d,]+) and ([\d,]+) tokens\)"
        r"\. .* does not pay: ([\d,]+) requests",
        text,
    )
    lim, lossless, plain = (found[mode] for mode in ("lim", "lossless", "lossless, drafts where they pay"))
    drafted, accepted = (lossless[f"{what}_tokens"] for what in ("drafted", "accepted"))
    figures = [lim["requests"], lossless["requests"], round(100 * (1 - accepted / drafted)), drafted]
    figures += [run[name] for name in ("replayed", "equal_tokens") for run in (lim, lossless)]
    assert [int(count.replace(",", "")) for count in shown] == [*figures, plain["requests"]]
    assert lim["settings"]["adapter"] == "True"
    for mode, run in found.items():
        assert [run[name] for name in ("lost", "stuck", "differing")] == [0, 0, 0], mode
        assert run["healthy"], mode
        assert run["wrong"] == [], mode
    for mode in ("lim", "lossless"):
        assert found[mode]["leaked_tokens"] == 0, mode
        assert found[mode]["seconds"] >= 300, mode
        assert found[mode]["retracted"] > 0, mode
        assert found[mode]["settings"]["running"] == "64"
        minutes = found[mode]["rss_mib_by_minute"]
        assert minutes[-1] <= 1.01 * minutes[-2], "memory still grows"


def test_two_gpus() -> None:
    found = {(row["model"], int(row["batch"]), int(row["context"])): row for row in rows_of("tp2.csv")}
    shown = re.findall(r"^\| (Qwen3-\S+)? ?\| (\d+) × ([\d,]+)[^|]*(\|.*)$", README, re.MULTILINE)
    assert len(shown) == len(found)
    model = ""
    for name, batch, context, rest in shown:
        model = name or model
        row = found[model, int(batch), int(context.replace(",", ""))]
        assert (row["gpu"], row["tp"]) == ("NVIDIA H100 80GB HBM3", "2")
        for cell, column in zip(cells(rest), ("dense_ms", "lim_ms", "speedup"), strict=True):
            assert same(cell, float(row[column])), (model, batch, context, cell)
    [share] = re.findall(r"exchange between the GPUs takes ([\d.]+) % of a step at 8 × 32,000", README)
    assert same(share, 100 * float(found["Qwen3-8B", 8, 32000]["collective_share"]))


def test_four_gpus() -> None:
    rows = rows_of("tp4.csv")
    assert {(row["gpu"], row["tp"]) for row in rows} == {("NVIDIA H200", "4")}
    found = {(row["layers"], row["dp"], int(row["batch"]), int(row["context"])): row for row in rows}
    shown = re.findall(
        r"([\d.]+) ms(?: per step)? in place of ([\d.]+) at 8 × 32,000 \(([\d.]+)×, the exchange takes "
        r"([\d.]+) %\) and(?: in)? ([\d.]+) in place of ([\d.]+) at 32 × 16,000 \(([\d.]+)×",
        " ".join(README.split()),
    )
    columns = ("lim_ms", "dense_ms", "speedup")
    for figures, layers in zip(shown, ("64", "32 of 94"), strict=True):
        for texts, shape in ((figures[:3], (8, 32000)), (figures[4:], (32, 16000))):
            for text, column in zip(texts, columns, strict=True):
                assert same(text, float(found[layers, "1", *shape][column])), (layers, shape, column)
        assert same(figures[3], 100 * float(found[layers, "1", 8, 32000]["collective_share"])), layers
    for (layers, _dp, batch, _context), row in found.items():
        astray = (layers, batch) == ("32 of 94", 32)  # one request, as bench/results/README.md says
        assert row["same_tokens"] == f"{batch - astray}/{batch}", (layers, batch)


def test_dp_attention_on_four_gpus() -> None:
    [row] = [row for row in rows_of("tp4.csv") if row["dp"] == "4"]
    assert (row["layers"], row["same_tokens"]) == ("8 of 94", "8/8")
    [shown] = re.findall(r"8 of those layers take ([\d.]+) ms in place of ([\d.]+) at", " ".join(README.split()))
    assert same(shown[0], float(row["lim_ms"]))
    assert same(shown[1], float(row["dense_ms"]))
    assert float(row["dense_ms"]) - float(row["lim_ms"]) < float(row["dense_spread_ms"]), "a gain: say so"


def test_verification_is_near_one_token() -> None:
    """And what was measured is what is shipped."""
    rows = rows_of("verify_attention.csv")
    found = {(int(row["batch"]), int(row["context"]), int(row["tokens"])): row for row in rows}
    assert float(found[8, 32768, 8]["of_one_token"]) <= 1.10
    for row in rows:
        heads = HeadShape(128, 4, torch.bfloat16, torch.bfloat16, int(row["tokens"]))
        shipped = asdict(verify_config(heads))
        names = ("block_n", "warps", "stages", "programs", "min_splits")
        assert {name: int(row[name]) for name in names} == {name: shipped[name] for name in names}


def test_long_generation_and_memory() -> None:
    summary = json.loads((RESULTS / "long_decode.json").read_text())["summary"]
    [line] = re.findall(r"^\| 16 requests that generate 16,384 tokens each (\|.*)$", README, re.MULTILINE)
    for cell, name in zip(cells(line), ("dense_s", "lim_s", "speedup"), strict=True):
        assert same(cell, summary[name])
    [row] = rows_of("decode_engine_batch64.csv")
    assert f"takes {row['extra_mib']} MiB more" in " ".join(README.split())


def test_the_other_dense_attention_of_hopper() -> None:
    rows = [row for row in rows_of("decode_attention.csv") if row["dense_fa3_us"] and row["budget"] == "2048"]
    [shown] = re.findall(
        r"fa3 takes ([\d.]+) to ([\d.]+) × FlashInfer's time from 8,192 tokens on, ([\d.]+) to ([\d.]+) × at 2,048",
        " ".join(README.split()),
    )
    longer, short = (
        [float(r["dense_fa3_us"]) / float(r["dense_us"]) for r in rows if (int(r["context"]) > 2048) == wanted]
        for wanted in (True, False)
    )
    for text, ratio in zip(shown, (min(longer), max(longer), min(short), max(short)), strict=True):
        assert same(text, ratio)


def test_serving() -> None:
    names = {"random prompts": ("random", "random"), "two shared prefixes": ("shared_prefix", "shared-prefix")}
    lines = re.findall(rf"^\| ({'|'.join(names)}) \| (1|all at once) (\|.*)$", README, re.MULTILINE)
    assert len(lines) == 4
    for title, rate, rest in lines:
        file, workload = names[title]
        found = {
            row["attention"]: row
            for row in rows_of(f"serving_h100_{file}.csv")
            if (row["workload"], row["rate"]) == (workload, rate.replace("all at once", "inf"))
        }
        shown = iter(cells(rest))
        for name, unit in (("output_throughput", 1), ("mean_itl_ms", 1), ("mean_ttft_ms", 1000)):
            for attention in ("dense", "lim"):
                cell = next(shown)
                assert same(cell, float(found[attention][name]) / unit), (title, rate, name, cell)


def test_lossless() -> None:
    files = ("lossless.csv", "lossless_large.csv", "lossless_tp2.csv")
    found = {
        (int(row["tp"]), int(row["batch"]), int(row["context"]), row["measured"]): row
        for name in files
        for row in rows_of(name)
        if row["measured"]
    }
    shown = re.findall(
        r"^\| (?:(2 × )?H200)? ?\| ?(?:(\d+) × ([\d,]+))? ?\| (greedy|at temperature 1) (\|.*)$", README, re.MULTILINE
    )
    assert len(shown) == 9
    ranks, batch, context = "", "", ""
    for gpus, first, second, drafts, rest in shown:
        ranks, batch, context = gpus if first else ranks, first or batch, second or context
        row = found[2 if ranks else 1, int(batch), int(context.replace(",", "")), drafts.removeprefix("at ")]
        assert row["gpu"] == "NVIDIA H200"
        for cell, column in zip(cells(rest), ("dense_ms", "lossless_ms", "speedup"), strict=True):
            assert same(cell, float(row[column])), (ranks, batch, context, drafts, cell)


def test_long_generation_without_loss() -> None:
    rows = rows_of("long_lossless.csv")
    summary = json.loads((RESULTS / "long_lossless.json").read_text())["summary"]
    text = " ".join(README.split())
    [lowest, start, end, whole] = re.findall(
        r"never slower than ([\d.]+) × dense attention and drafts from ([\d,]+) tokens on: ([\d.]+) × at the end, "
        r"([\d.]+) over all",
        text,
    )[0]
    assert same(lowest, min(float(row["speedup"]) for row in rows))
    assert same(end, float(rows[-1]["speedup"]))
    assert same(whole, summary["speedup"])
    ahead = [float(row["speedup"]) > 1.01 for row in rows if int(row["context"]) >= int(start.replace(",", ""))]
    assert all(ahead)
    assert len(ahead) == sum(float(row["speedup"]) > 1.01 for row in rows)


def test_lossless_tokens() -> None:
    rows = rows_of("lossless_tokens.csv")
    assert len(rows) == 216
    assert all(row["equal"] == row["tokens"] == "128" for row in rows)
