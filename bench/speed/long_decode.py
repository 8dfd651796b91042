"""A reasoning model's work: short prompts, long outputs, so that the context outgrows the budget while it generates.

    python -m bench.speed.long_decode --model Qwen3-8B
    python -m bench.speed.long_decode --device cpu --batch 2 --output 400 --budget 128

All requests of a batch are generated together, by dense attention and then by lim, each in a fresh engine. Milliseconds
per step are taken between marks of the first request's stream. Writes ``long_decode.csv``, a row per stretch of it.

Within the budget lim computes what dense attention does, up to bfloat16: dummy weights make near-ties, and a request
that joins a batch a step later is rounded differently. So the number of requests with dense's tokens throughout the
budget is reported, and no speed if one differs within its first ``SURE`` tokens.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.speed.arms import MODEL_HELP, default_model, start_arm
from bench.timing import about

COLUMNS = ["gpu", "model", "batch", "budget", "context", "dense_ms", "lim_ms", "speedup"]
SURE = 64  # tokens that must be dense's
Marks = Sequence[tuple[int, float]]


def main() -> None:
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    arms = {arm: start_arm("long_decode_arm", vars(args) | {"arm": arm}) for arm in ("dense", "lim")}
    compared = max(0, min(args.output, args.budget - args.prompt))
    same = [same_tokens(*pair) for pair in zip(arms["dense"]["tokens"], arms["lim"]["tokens"], strict=True)]
    check_same(same, compared)
    marks = {arm: found["marks"] for arm, found in arms.items()}
    facts = about()
    rows = [
        {"gpu": facts["gpu"], "model": Path(args.model).name, "batch": args.batch, "budget": args.budget} | row
        for row in stretches(marks["dense"], marks["lim"], args.prompt, args.stretch)
    ]
    with (args.out / "long_decode.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    summary = summarise(rows, marks, args.budget)
    summary["same_tokens_within_budget"] = f"{sum(count >= compared for count in same)}/{len(same)}"
    (args.out / "long_decode.json").write_text(
        json.dumps({"about": facts, "summary": summary, "marks": marks}, indent=1) + "\n"
    )
    for row in rows:
        print("  ".join(f"{name}={row[name]}" for name in COLUMNS[2:]))
    print("  ".join(f"{name}={value}" for name, value in summary.items()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", help=MODEL_HELP)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--output", type=int, default=16_384, help="tokens generated per request")
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--interval", type=int, default=64, help="tokens between marks of the stream")
    parser.add_argument("--stretch", type=int, default=512, help="tokens of a row")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the results (runs)")
    args = parser.parse_args()
    args.model = default_model(args, parser)
    return args


def same_tokens(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Tokens before the first difference."""
    pairs = enumerate(zip(ours, theirs, strict=True))
    return next((place for place, (one, other) in pairs if one != other), len(ours))


def check_same(same: Sequence[int], compared: int) -> None:
    """End with one line, and no speed, where a request leaves dense's tokens among its first ``SURE``.

    Args:
        same: tokens of every request before its first difference.
        compared: tokens that are generated within the budget.
    """
    if min(same) < min(SURE, compared):
        sys.exit(f"long_decode: error: lim's tokens differ from dense's at token {min(same)}; no speed is reported")


def stretches(dense: Marks, lim: Marks, prompt: int, length: int) -> list[dict[str, Any]]:
    """A row per ``length`` generated tokens, between marks that both arms have."""
    times = [dict(marks) for marks in (dense, lim)]
    common = sorted(set(times[0]) & set(times[1]))
    rows, start = [], common[0]
    for end in common[1:]:
        if end - start < length and end != common[-1]:
            continue
        dense_ms, lim_ms = ((at[end] - at[start]) / (end - start) * 1e3 for at in times)
        context = prompt + (start + end) // 2
        rows.append(
            {
                "context": context,
                "dense_ms": round(dense_ms, 3),
                "lim_ms": round(lim_ms, 3),
                "speedup": round(dense_ms / lim_ms, 3),
            }
        )
        start = end
    return rows


def summarise(rows: Sequence[dict[str, Any]], marks: dict[str, Marks], budget: int) -> dict[str, Any]:
    """Total decode time, the context from which lim stays ahead, and its lowest speed-up before that."""
    seconds = {arm: found[-1][1] - found[0][1] for arm, found in marks.items()}
    behind = [row["context"] for row in rows if row["speedup"] < 1]
    ahead_from = min((row["context"] for row in rows if row["context"] > max(behind, default=0)), default=None)
    within = [row["speedup"] for row in rows if row["context"] <= budget]
    return {
        "dense_s": round(seconds["dense"], 2),
        "lim_s": round(seconds["lim"], 2),
        "speedup": round(seconds["dense"] / seconds["lim"], 3),
        "ahead_from_context": ahead_from,
        "lowest_speedup": min(row["speedup"] for row in rows),
        "lowest_speedup_within_budget": min(within, default=None),
    }


if __name__ == "__main__":
    main()
