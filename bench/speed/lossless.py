"""The lossless mode's speed: dense attention, lim, and lim's drafts verified by dense attention, in one run.

    python -m bench.speed.lossless --model Qwen3-8B --shapes 8x32000 16x16000 16x1500 1x8000

What dummy weights accept tells nothing, so acceptance is imposed: ``--shares`` of drafts that are accepted, given that
those before were. Without it, the shares that ``acceptance.csv`` measured with real weights at the budget's share of
each context, greedy and at temperature 1, and one below. Drafting, verifying and the choice of how many to draft run as
they do in a server. Milliseconds are per generated token of a request; a batch makes as many tokens at once.

Correctness first: where no request outgrows the budget, the lossless mode must give dense attention's tokens, or no
speed is reported. With real weights, ``tests/e2e/test_cuda_lossless.py`` compares.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from bench.speed.arms import MODEL_HELP, default_model, exit_on_problems, problem, start_arm
from bench.timing import about

ARMS = ("dense", "lim", "lossless")
BELOW = 0.8
COLUMNS = [
    *("gpu", "model", "tp", "batch", "context", "budget", "share", "measured", "drafts", "accepted", "dense_ms"),
    *("lim_ms", "lossless_ms", "speedup", "speedup_of_lim", "dense_spread_ms", "lossless_spread_ms", "extra_mib"),
    "same_tokens",
]
ACCEPTANCE = Path(__file__).parents[1] / "results" / "acceptance.csv"
Row = dict[str, Any]


def main() -> None:
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    arms = {arm: start_arm("lossless_arm", vars(args) | {"arm": arm}) for arm in args.arms}
    rows = compare(args, arms)
    write(args.out, rows, arms)
    for row in [dict(zip(COLUMNS, COLUMNS, strict=True)), *rows]:
        print("  ".join(f"{row[name]!s:>{max(8, len(name))}}" for name in COLUMNS[3:]))
    exit_on_problems(rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", help=MODEL_HELP)
    parser.add_argument("--shapes", nargs="+", default=["8x32000", "16x16000", "16x1500", "1x8000"])
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--shares", type=float, nargs="+", help=f"accepted drafts (those measured, and {BELOW})")
    parser.add_argument("--tokens", type=int, default=384, help="generated tokens per measurement (384)")
    parser.add_argument("--repeats", type=int, default=2, help="measurements per shape and share (2)")
    parser.add_argument("--tp", type=int, default=1, help="GPUs that share the heads (1)")
    parser.add_argument("--without-lim", action="store_true", help="no arm of lim alone")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the results (runs)")
    args = parser.parse_args()
    args.model = default_model(args, parser)
    args.shapes = [tuple(map(int, shape.split("x"))) for shape in args.shapes]
    args.arms = [arm for arm in ARMS if arm != "lim" or not args.without_lim]
    args.shares_by_shape = [
        args.shares or sorted({BELOW, *measured_shares(args.budget, context).values()}) for _, context in args.shapes
    ]
    return args


@cache
def measured_shares(budget: int, context: int, drafts: int = 6) -> dict[str, float]:
    """By sampling, the share that gives as many accepted drafts as were measured at the nearest share of a context."""
    with ACCEPTANCE.open() as file:
        rows = [row for row in csv.DictReader(file) if row["drafts"] == "lim steps" and int(row["k"]) == drafts]
    nearest = min(distance(row, budget, context) for row in rows)
    rows = [row for row in rows if distance(row, budget, context) == nearest]
    found = {}
    for name, temperature in (("greedy", 0.0), ("temperature 1", 1.0)):
        accepted = [float(row["accepted"]) for row in rows if float(row["temperature"]) == temperature]
        found[name] = round(share_of(sum(accepted) / len(accepted), drafts), 3)
    return found


def distance(row: dict[str, str], budget: int, context: int) -> float:
    """Between the shares of the context that a row's budget and this one make."""
    return abs(int(row["budget"]) / int(row["context"]) - budget / context)


def share_of(accepted: float, drafts: int) -> float:
    """The share of which ``accepted`` of ``drafts`` drafts are accepted on average."""
    low, high = 0.0, 1.0
    for _ in range(40):
        share = (low + high) / 2
        low, high = (share, high) if sum(share**n for n in range(1, drafts + 1)) < accepted else (low, share)
    return low


def compare(args: argparse.Namespace, arms: dict[str, Any]) -> list[Row]:
    """A row per shape and share."""
    extra = arms["lossless"].get("memory_mib", 0) - arms["dense"].get("memory_mib", 0)
    common = {"gpu": arms["dense"].get("gpu", "none"), "model": Path(args.model).name, "tp": args.tp}
    rows = []
    for number, (batch, context) in enumerate(args.shapes):
        shape = {"batch": batch, "context": context, "budget": args.budget, "extra_mib": extra}
        at = {arm: result["rows"][number] for arm, result in arms.items()}
        rows += [common | shape | compare_shape(args, at, row, context) for row in at["lossless"]]
    return rows


def compare_shape(args: argparse.Namespace, at: dict[str, list[Row]], row: Row, context: int) -> Row:
    """What one share adds to the columns."""
    [dense], [lim] = at["dense"], at.get("lim", [{"ms": None}])
    same = [ours == theirs for ours, theirs in zip(at["lossless"][0]["tokens"], dense["tokens"], strict=True)]
    within = context + args.tokens + 8 <= args.budget
    rounds = row["rounds"]["request_rounds"] or 1
    names = [name for name, share in measured_shares(args.budget, context).items() if share == row["share"]]
    return {
        "share": row["share"],
        "measured": " ".join(names),
        "drafts": round(row["rounds"]["drafted_tokens"] / rounds, 2),
        "accepted": round(row["rounds"]["accepted_tokens"] / rounds, 2),
        "dense_ms": dense["ms"],
        "lim_ms": lim["ms"],
        "lossless_ms": row["ms"],
        "speedup": problem((dense["ms"], row["ms"]), same, within) or round(dense["ms"] / row["ms"], 3),
        "speedup_of_lim": lim["ms"] and round(dense["ms"] / lim["ms"], 3),
        "dense_spread_ms": dense["spread_ms"],
        "lossless_spread_ms": row["spread_ms"],
        "same_tokens": f"{sum(same)}/{len(same)}",
    }


def write(out: Path, rows: Sequence[Row], arms: dict[str, Any]) -> None:
    """The table, and all that was measured without the generated tokens."""
    with (out / "lossless.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for arm in arms.values():
        for of_shape in arm["rows"]:
            del of_shape[0]["tokens"]
    (out / "lossless.json").write_text(json.dumps({"about": about(), "arms": arms}, indent=1) + "\n")


if __name__ == "__main__":
    main()
