"""The lossless mode's speed: dense attention, lim, and lim's drafts verified by dense attention, in one run.

    python -m bench.speed.lossless --model Qwen3-8B --shapes 8x32000 16x16000 16x1500 1x8000

Dummy weights accept next to no drafts, so acceptance is imposed: ``--shares`` of drafts that are accepted, given that
those before were. Without it, the shares that ``acceptance.csv`` measured with real weights at the budget's share of
each context, greedy and at temperature 1, and some around them. Drafting, verifying and the choice of how many to draft
run as they do in a server. Milliseconds are per generated token of a request; a batch makes as many tokens at once.

Correctness first: where no request outgrows the budget, the lossless mode must give dense attention's tokens, or no
speed is reported. With real weights, ``tests/e2e/test_cuda_lossless.py`` compares.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.speed.arms import MODEL_HELP, default_model, start_arm
from bench.timing import about
from lim_sglang.host.lossless import ENV_REFRESH, REFRESH

SHARES = (0.8,)
KINDS = {True: "lim steps", False: "first draft's last set"}  # in acceptance.csv, by whether every draft chooses sets
COLUMNS = [
    *(
        "gpu",
        "model",
        "tp",
        "batch",
        "context",
        "budget",
        "drafts_by_set",
        "share",
        "measured",
        "drafts",
        "accepted",
        "dense_ms",
    ),
    *("lim_ms", "lossless_ms", "speedup", "speedup_of_lim", "dense_spread_ms", "lossless_spread_ms", "extra_mib"),
    "same_tokens",
]
ACCEPTANCE = Path(__file__).parents[1] / "results" / "acceptance.csv"
Row = dict[str, Any]


def main() -> None:
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for arm in ("dense", *["lim"][: not args.without_lim]):
        found[arm] = start_arm("lossless_arm", request(args, arm, 1))
    for drafts_by_set in args.drafts_by_set:
        found[f"lossless {drafts_by_set}"] = start_arm("lossless_arm", request(args, "lossless", drafts_by_set))
    rows = [row for drafts_by_set in args.drafts_by_set for row in compare(args, found, drafts_by_set)]
    write(args.out, rows, found)
    for row in [dict(zip(COLUMNS, COLUMNS, strict=True)), *rows]:
        print("  ".join(f"{row[name]!s:>{max(8, len(name))}}" for name in COLUMNS[3:]))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", help=MODEL_HELP)
    parser.add_argument("--shapes", nargs="+", default=["8x32000", "16x16000", "16x1500", "1x8000"])
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument(
        "--shares", type=float, nargs="+", help="accepted drafts (those measured, and some around them)"
    )
    parser.add_argument("--tokens", type=int, default=384, help="generated tokens per measurement (384)")
    parser.add_argument("--repeats", type=int, default=2, help="measurements per shape and share (2)")
    parser.add_argument("--tp", type=int, default=1, help="GPUs that share the heads (1)")
    parser.add_argument(
        "--drafts-by-set", type=int, nargs="+", default=[REFRESH["cuda"]], help=f"values of {ENV_REFRESH}"
    )
    parser.add_argument("--without-lim", action="store_true", help="no arm of lim alone")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the results (runs)")
    args = parser.parse_args()
    args.model = default_model(args, parser)
    args.shapes = [tuple(map(int, shape.split("x"))) for shape in args.shapes]
    return args


def request(args: argparse.Namespace, arm: str, drafts_by_set: int) -> dict[str, Any]:
    """What ``lossless_arm`` is told."""
    shares = [
        args.shares or sorted({*SHARES, *measured_shares(args.budget, context, drafts_by_set).values()})
        for _, context in args.shapes
    ]
    return vars(args) | {"arm": arm, "drafts_by_set": drafts_by_set, "shares_by_shape": shares}


def measured_shares(budget: int, context: int, drafts_by_set: int, drafts: int = 6) -> dict[str, float]:
    """By sampling, the share that gives as many accepted drafts as were measured at the nearest share of a context."""
    kind = KINDS[drafts_by_set == 1]
    with ACCEPTANCE.open() as file:
        rows = [row for row in csv.DictReader(file) if row["drafts"] == kind and int(row["k"]) == drafts]
    if not rows:
        return {}
    nearest = min((abs(ratio_of(row) - budget / context) for row in rows))
    rows = [row for row in rows if abs(ratio_of(row) - budget / context) == nearest]
    found = {}
    for name, temperature in (("greedy", 0.0), ("temperature 1", 1.0)):
        accepted = [float(row["accepted"]) for row in rows if float(row["temperature"]) == temperature]
        found[name] = round(share_of(sum(accepted) / len(accepted), drafts), 3)
    return found


def ratio_of(row: dict[str, str]) -> float:
    return int(row["budget"]) / int(row["context"])


def share_of(accepted: float, drafts: int) -> float:
    """The share of which ``accepted`` of ``drafts`` drafts are accepted on average."""
    low, high = 0.0, 1.0
    for _ in range(40):
        share = (low + high) / 2
        low, high = (share, high) if sum(share**n for n in range(1, drafts + 1)) < accepted else (low, share)
    return low


def compare(args: argparse.Namespace, found: dict[str, Any], drafts_by_set: int) -> list[Row]:
    """A row per shape and share."""
    rows = []
    for number, (batch, context) in enumerate(args.shapes):
        at = {arm.split()[0]: found[arm]["rows"][number] for arm in found if arm in alone(drafts_by_set)}
        memory = {arm.split()[0]: found[arm].get("memory_mib", 0) for arm in found if arm in alone(drafts_by_set)}
        for row in at["lossless"]:
            compared = compare_shape(args, at, row, batch, context, drafts_by_set)
            extra = {"gpu": found["dense"].get("gpu", "none"), "extra_mib": memory["lossless"] - memory["dense"]}
            rows.append(extra | compared)
    return rows


def alone(drafts_by_set: int) -> set[str]:
    """The arms that belong to one way of drafting."""
    return {"dense", "lim", f"lossless {drafts_by_set}"}


def compare_shape(
    args: argparse.Namespace, at: dict[str, Any], row: Row, batch: int, context: int, drafts_by_set: int
) -> Row:
    [dense], [lim] = at["dense"], at.get("lim", [None])
    same = [ours == theirs for ours, theirs in zip(at["lossless"][0]["tokens"], dense["tokens"], strict=True)]
    wrong = context + args.tokens + 8 <= args.budget and not all(same)
    rounds = row["rounds"]
    drafted = rounds["request_rounds"] or 1
    measured = measured_shares(args.budget, context, drafts_by_set)
    names = [name for name, share in measured.items() if share == row["share"]]
    return {
        "model": Path(args.model).name,
        "tp": args.tp,
        "batch": batch,
        "context": context,
        "budget": args.budget,
        "drafts_by_set": drafts_by_set,
        "share": row["share"],
        "measured": " ".join(names),
        "drafts": round(rounds["drafted_tokens"] / drafted, 2),
        "accepted": round(rounds["accepted_tokens"] / drafted, 2),
        "dense_ms": dense["ms"],
        "lim_ms": lim and lim["ms"],
        "lossless_ms": row["ms"],
        "speedup": "wrong tokens" if wrong else round(dense["ms"] / row["ms"], 3),
        "speedup_of_lim": lim and round(dense["ms"] / lim["ms"], 3),
        "dense_spread_ms": dense["spread_ms"],
        "lossless_spread_ms": row["spread_ms"],
        "same_tokens": f"{sum(same)}/{len(same)}",
    }


def write(out: Path, rows: Sequence[Row], found: dict[str, Any]) -> None:
    """The table, and all that was measured without the generated tokens."""
    with (out / "lossless.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for arm in found.values():
        for of_shape in arm["rows"]:
            del of_shape[0]["tokens"]
    (out / "lossless.json").write_text(json.dumps({"about": about(), "arms": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
