"""One engine of ``lossless``: milliseconds per generated token and request, by shape, and what became of the drafts.

``lossless`` starts this in a process of its own, so that an arm leaves nothing behind for the next one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.speed import imposed_acceptance
from bench.speed.arms import engine, serve_arm
from bench.speed.engine_arm import WARM_STEPS, generate
from lim_sglang.speculative.policy import Acceptance
from lim_sglang.tools.servers.state import lim_part, rounds_since

SETTLING = 8 * round(1 / (1 - Acceptance().memory))  # tokens after which the policy has forgotten another share


def run_arm(args: argparse.Namespace) -> dict[str, Any]:
    """``rows``: a list for every shape and, in the lossless arm, every share of drafts that is accepted."""
    with tempfile.TemporaryDirectory() as folder:
        file = imposed_acceptance.install(Path(folder)) if args.arm == "lossless" else None
        longest = max(context for _, context in args.shapes) + 2 * SETTLING + args.tokens + 64
        with engine(args, max(batch for batch, _ in args.shapes), longest) as running:
            shapes = zip(args.shapes, args.shares_by_shape, strict=True)
            rows = [measure(running, batch, context, file, shares, args) for (batch, context), shares in shapes]
            return {"rows": rows} | on_gpu(args)


def on_gpu(args: argparse.Namespace) -> dict[str, Any]:
    if args.device == "cpu":
        return {}
    import torch

    from bench.timing import used_mib

    return {"gpu": torch.cuda.get_device_name(), "memory_mib": used_mib()}


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
    """Long less short generations, both from the radix cache."""
    times, before = [], state(running, args)
    for _ in range(args.repeats):
        short, _ = generate(running, batch, context, WARM_STEPS)
        long, _ = generate(running, batch, context, WARM_STEPS + args.tokens)
        times.append((long - short) / args.tokens * 1e3)
    after = state(running, args)
    rounds = rounds_since(before, after) if before and after else {}
    return {"ms": round(statistics.median(times), 3), "spread_ms": round(max(times) - min(times), 3), "rounds": rounds}


def state(running: Any, args: argparse.Namespace) -> dict[str, Any] | None:
    """What lim reports, with the totals of the lossless mode; None in the other arms."""
    return lim_part(running.get_server_info()) if args.arm == "lossless" else None


if __name__ == "__main__":
    serve_arm(run_arm, __doc__ or "")
