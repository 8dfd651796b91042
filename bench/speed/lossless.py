"""The lossless mode's speed: dense attention, lim, and lim's drafts verified by dense attention, in one run.

    python -m bench.speed.lossless --model Qwen3-8B --shapes 8x32000 16x16000 16x1500 1x8000

What dummy weights accept tells nothing, so acceptance is imposed: ``--shares`` of drafts that are accepted, given that
those before were. Without it, the shares that ``acceptance.csv`` measured with real weights at the budget's share of
each context, greedy and at temperature 1, and one below, in descending order: the policy learns of a lower share while
it drafts, and of a higher one only when it tries drafts again. Drafting, verifying and the choice of how many to draft
run as they do in a server. Milliseconds are per generated token of a request; a batch makes as many tokens at once.

Correctness first: where no request outgrows the budget, the lossless mode must give dense attention's tokens, or no
speed is reported. Where drafts come from copies of the weights, which are used within the budget too, one request in
four may part from dense attention's: a verification rounds otherwise than a step of one token. No speed is reported
either where an arm's measurements lie as far apart as they are long. With real weights,
``tests/e2e/test_cuda_lossless.py`` compares.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench import driver
from bench.speed import imposed_acceptance
from bench.speed.arms import (
    WARM_STEPS,
    bench_parser,
    decode_ms,
    default_model,
    engine,
    generate,
    problem,
    shape_of,
    start_arm,
)
from lim_sglang.speculative.policy import Acceptance
from lim_sglang.tools.servers.state import lim_part, rounds_since

ARMS = ("dense", "lim", "lossless")
BELOW = 0.8
COLUMNS = [
    *("gpu", "model", "tp", "draft_weights", "batch", "context", "budget", "share", "measured", "drafts", "accepted"),
    "dense_ms",
    *("lim_ms", "lossless_ms", "speedup", "speedup_of_lim", "dense_spread_ms", "lossless_spread_ms", "extra_mib"),
    "same_tokens",
]
SETTLING = 8 * round(1 / (1 - Acceptance().memory))  # tokens after which the policy has forgotten another share
ACCEPTANCE = Path(__file__).parents[1] / "results" / "acceptance.csv"
Row = dict[str, Any]


def main() -> None:
    args = parse()
    arms = {arm: start_arm("bench.speed.lossless", vars(args) | {"arm": arm}) for arm in args.arms}
    rows = compare(args, arms)
    write(args.out, rows, arms)
    driver.print_rows(rows, COLUMNS[3:])
    driver.exit_on_problems(rows)


def parse() -> argparse.Namespace:
    parser = bench_parser(__doc__)
    shapes = [(8, 32000), (16, 16000), (16, 1500), (1, 8000)]
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=shapes, help="batch x tokens")
    parser.add_argument("--shares", type=float, nargs="+", help=f"accepted drafts (those measured, and {BELOW})")
    parser.add_argument("--tokens", type=int, default=384, help="generated tokens per measurement (384)")
    parser.add_argument("--repeats", type=int, default=2, help="measurements per shape and share (2)")
    parser.add_argument("--tp", type=int, default=1, help="GPUs that share the heads (1)")
    parser.add_argument("--draft-weights", choices=["auto", "model", "int8"], default="auto", help="of drafts (auto)")
    parser.add_argument("--without-lim", action="store_true", help="no arm of lim alone")
    args = parser.parse_args()
    args.model = default_model(args, parser)
    args.arms = [arm for arm in ARMS if arm != "lim" or not args.without_lim]
    args.shares_by_shape = [
        args.shares or sorted({BELOW, *measured_shares(args, context).values()}, reverse=True)
        for _, context in args.shapes
    ]
    return args


def measured_shares(args: argparse.Namespace, context: int) -> dict[str, float]:
    """Those of the arm's drafts; copies are expected on a GPU where ``auto`` chooses."""
    copies = args.draft_weights == "int8" or (args.draft_weights == "auto" and args.device == "cuda")
    return shares_of("lim steps, int8" if copies else "lim steps", args.budget, context)


@cache
def shares_of(kind: str, budget: int, context: int, drafts: int = 6) -> dict[str, float]:
    """By sampling, the share that gives as many accepted drafts as were measured at the nearest share of a context."""
    rows = [row for row in driver.read_rows(ACCEPTANCE) if row["drafts"] == kind and int(row["k"]) == drafts]
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
    shares = np.linspace(0, 1, 10_001)
    return float(np.interp(accepted, sum(shares**n for n in range(1, drafts + 1)), shares))


def compare(args: argparse.Namespace, arms: dict[str, Any]) -> list[Row]:
    """A row per shape and share."""
    extra = arms["lossless"].get("memory_mib", 0) - arms["dense"].get("memory_mib", 0)
    common = {"gpu": arms["dense"].get("gpu", "none"), "model": Path(args.model).name, "tp": args.tp}
    common["draft_weights"] = arms["lossless"]["draft_weights"]
    rows = []
    for number, (batch, context) in enumerate(args.shapes):
        shape = {"batch": batch, "context": context, "budget": args.budget, "extra_mib": extra}
        at = {arm: result["rows"][number] for arm, result in arms.items()}
        copies = common["draft_weights"] != "model"
        rows += [common | shape | compare_shape(args, at, row, context, copies) for row in at["lossless"]]
    return rows


def compare_shape(args: argparse.Namespace, at: dict[str, list[Row]], row: Row, context: int, copies: bool) -> Row:
    """What one share adds to the columns; ``copies``: whether drafts multiply by copies of the weights."""
    [dense], [lim] = at["dense"], at.get("lim", [{}])
    same = [ours == theirs for ours, theirs in zip(at["lossless"][0]["tokens"], dense["tokens"], strict=True)]
    within = context + args.tokens + 8 <= args.budget
    enough = sum(same) >= (0.75 if copies else 1) * len(same)
    why_not = problem((arm["ms"] - arm["spread_ms"] for arm in (dense, lim, row) if arm), [enough], within)
    rounds = row["rounds"]["request_rounds"] or 1
    names = [name for name, share in measured_shares(args, context).items() if share == row["share"]]
    return {
        "share": row["share"],
        "measured": " ".join(names),
        "drafts": round(row["rounds"]["drafted_tokens"] / rounds, 2),
        "accepted": round(row["rounds"]["accepted_tokens"] / rounds, 2),
        "dense_ms": dense["ms"],
        "lim_ms": lim.get("ms"),
        "lossless_ms": row["ms"],
        "speedup": why_not or round(dense["ms"] / row["ms"], 3),
        "speedup_of_lim": round(dense["ms"] / lim["ms"], 3) if lim and not why_not else None,
        "dense_spread_ms": dense["spread_ms"],
        "lossless_spread_ms": row["spread_ms"],
        "same_tokens": f"{sum(same)}/{len(same)}",
    }


def write(out: Path, rows: Sequence[Row], arms: dict[str, Any]) -> None:
    """The table, and all that was measured without the generated tokens."""
    driver.write_rows(out / "lossless.csv", COLUMNS, rows)
    for arm in arms.values():
        for of_shape in arm["rows"]:
            del of_shape[0]["tokens"]
    driver.write_json(out / "lossless.json", arms=arms)


def run_arm(args: argparse.Namespace) -> dict[str, Any]:
    """One engine; ``rows``: a list for every shape and, in the lossless arm, every share of drafts that is accepted."""
    with tempfile.TemporaryDirectory() as folder:
        file = imposed_acceptance.install(Path(folder)) if args.arm == "lossless" else None
        longest = max(context for _, context in args.shapes) + 2 * SETTLING + args.tokens + 64
        with engine(args, max(batch for batch, _ in args.shapes), longest) as running:
            shapes = zip(args.shapes, args.shares_by_shape, strict=True)
            found: dict[str, Any] = {
                "rows": [measure(running, batch, context, file, shares, args) for (batch, context), shares in shapes]
            }
            if args.arm == "lossless":
                found["draft_weights"] = lim_part(running.get_server_info())["lossless"]["draft_weights"]["format"]
            if args.device == "cpu":
                return found
            import torch

            from bench.timing import used_mib

            return found | {"gpu": torch.cuda.get_device_name(), "memory_mib": used_mib()}


def measure(
    running: Any, batch: int, context: int, file: Path | None, shares: Sequence[float | None], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """One shape: the tokens first, with nothing imposed, then the times."""
    generate(running, batch, context, WARM_STEPS)
    _, tokens = generate(running, batch, context, WARM_STEPS + args.tokens)
    found: list[dict[str, Any]] = []
    for share in shares if file else [None]:
        if file:
            file.write_text(str(share))
            generate(running, batch, context, SETTLING)
        found.append({"share": share} | timed(running, batch, context, args))
        print(f"{args.arm}: {batch}x{context} share {share}: {found[-1]['ms']} ms/token", flush=True)
    found[0]["tokens"] = tokens
    return found


def timed(running: Any, batch: int, context: int, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per token, and what the server counted of the rounds."""
    counted = args.arm == "lossless"
    before = lim_part(running.get_server_info()) if counted else {}
    times, _ = decode_ms(running, batch, context, args.tokens, args.repeats)
    rounds = rounds_since(before, lim_part(running.get_server_info())) if counted else {}
    return {"ms": round(statistics.median(times), 3), "spread_ms": round(max(times) - min(times), 3), "rounds": rounds}


if __name__ == "__main__":
    main()
