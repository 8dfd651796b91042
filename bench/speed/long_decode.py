"""A reasoning model's work: short prompts, long outputs, so that the context outgrows the budget while it generates.

    python -m bench.speed.long_decode --model Qwen3-8B
    python -m bench.speed.long_decode --model Qwen3-8B --arm lossless --share 0.95
    python -m bench.speed.long_decode --device cpu --batch 2 --output 400 --budget 128

All requests of a batch are generated together, by dense attention and then by lim, each in a fresh engine. Milliseconds
per token are taken between marks of the first request's stream. Writes ``long_decode.csv``, a row per stretch of it.
With ``--arm lossless`` the second is the lossless mode, which accepts ``--share`` of its drafts, as in
``bench.speed.lossless``, and the file is ``long_lossless.csv``.

Within the budget lim computes what dense attention does, up to bfloat16: dummy weights make near-ties, and a request
that joins a batch a step later is rounded differently. So the number of requests with dense's tokens throughout the
budget is reported, and no speed if one differs within its first ``SURE`` tokens. The lossless mode gives those tokens
in a run of its own, with nothing imposed; there one request in four may differ, as a verification rounds otherwise than
a step of one token.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import driver
from bench.speed import imposed_acceptance
from bench.speed.arms import bench_parser, default_model, engine, prompts, start_arm

COLUMNS = ["gpu", "model", "batch", "budget", "context", "dense_ms", "{arm}_ms", "speedup"]
FILES = {"lim": "long_decode", "lossless": "long_lossless"}
SURE = 64  # tokens that must be dense's
WARM_TOKENS = 32
Marks = Sequence[tuple[int, float]]


def main() -> None:
    args = parse()
    arms = {arm: start_arm("bench.speed.long_decode", vars(args) | {"arm": arm}) for arm in ("dense", args.arm)}
    compared = tokens_within_budget(args)
    pairs = zip(arms["dense"]["tokens"], arms[args.arm]["tokens"], strict=True)
    same = [len(os.path.commonprefix(pair)) for pair in pairs]
    check_same(same, compared, len(same) // 4 if args.arm == "lossless" else 0)
    marks = {arm: found["marks"] for arm, found in arms.items()}
    facts = driver.about()
    rows = [
        {"gpu": facts["gpu"], "model": Path(args.model).name, "batch": args.batch, "budget": args.budget} | row
        for row in stretches(marks["dense"], marks[args.arm], args.prompt, args.stretch, args.arm)
    ]
    columns = [name.format(arm=args.arm) for name in COLUMNS]
    driver.write_rows(args.out / f"{FILES[args.arm]}.csv", columns, rows)
    summary = summarise(rows, marks, args.budget)
    summary["same_tokens_within_budget"] = f"{sum(count >= compared for count in same)}/{len(same)}"
    driver.write_json(args.out / f"{FILES[args.arm]}.json", about=facts, summary=summary, marks=marks)
    for row in rows:
        print(driver.pairs({name: row[name] for name in columns[2:]}))
    print(driver.pairs(summary))


def parse() -> argparse.Namespace:
    parser = bench_parser(__doc__)
    parser.add_argument("--arm", choices=list(FILES), default="lim", help="what is compared with dense attention (lim)")
    parser.add_argument(
        "--share", type=float, default=0.95, help="of lossless: drafts accepted, given those before (0.95)"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--output", type=int, default=16_384, help="tokens generated per request")
    parser.add_argument("--interval", type=int, default=64, help="tokens between marks of the stream")
    parser.add_argument("--stretch", type=int, default=512, help="tokens of a row")
    args = parser.parse_args()
    args.model = default_model(args, parser)
    return args


def tokens_within_budget(args: argparse.Namespace) -> int:
    """How many of the generated tokens lie within the budget."""
    return max(0, min(args.output, args.budget - args.prompt))


def check_same(same: Sequence[int], compared: int, allowed: int = 0) -> None:
    """End with one line, and no speed, where more requests than allowed leave dense's tokens among the first ``SURE``.

    ``same``: tokens of every request before its first difference; ``compared``: of those generated within the budget.
    """
    first = sorted(same)[allowed]
    if first < min(SURE, compared):
        sys.exit(f"long_decode: error: tokens differ from dense's at token {first}; no speed is reported")


def stretches(dense: Marks, other: Marks, prompt: int, length: int, arm: str = "lim") -> list[dict[str, Any]]:
    """A row per ``length`` generated tokens, between dense attention's marks; the other's lie on a line there."""
    marks = [tokens for tokens, _ in dense if other[0][0] <= tokens <= other[-1][0]]
    rows, start = [], marks[0]
    for end in marks[1:]:
        if end - start < length and end != marks[-1]:
            continue
        dense_ms, other_ms = (elapsed(of_arm, start, end) / (end - start) * 1e3 for of_arm in (dense, other))
        context = prompt + (start + end) // 2
        rows.append(
            {
                "context": context,
                "dense_ms": round(dense_ms, 3),
                f"{arm}_ms": round(other_ms, 3),
                "speedup": round(dense_ms / other_ms, 3),
            }
        )
        start = end
    return rows


def elapsed(marks: Marks, start: int, end: int) -> float:
    """Seconds from ``start`` generated tokens to ``end``."""
    tokens, seconds = zip(*marks, strict=True)
    at_start, at_end = np.interp([start, end], tokens, seconds)
    return float(at_end - at_start)


def summarise(rows: Sequence[dict[str, Any]], marks: dict[str, Marks], budget: int) -> dict[str, Any]:
    """Total decode time, the context from which the second arm stays ahead, and its lowest speed-up before that."""
    seconds = {arm: found[-1][1] - found[0][1] for arm, found in marks.items()}
    dense, other = seconds.values()
    behind = [row["context"] for row in rows if row["speedup"] < 1]
    ahead_from = min((row["context"] for row in rows if row["context"] > max(behind, default=0)), default=None)
    within = [row["speedup"] for row in rows if row["context"] <= budget]
    return {
        **{f"{arm}_s": round(value, 2) for arm, value in seconds.items()},
        "speedup": round(dense / other, 3),
        "ahead_from_context": ahead_from,
        "lowest_speedup": min(row["speedup"] for row in rows),
        "lowest_speedup_within_budget": min(within, default=None),
    }


def run_arm(args: argparse.Namespace) -> dict[str, Any]:
    """One engine: seconds by generated tokens of the first request, and every request's tokens."""
    requests = prompts(args.batch, args.prompt)
    longest = args.prompt + args.output + 32  # drafts beyond the end have slots, too
    with tempfile.TemporaryDirectory() as folder:
        share = imposed_acceptance.install(Path(folder)) if args.arm == "lossless" else None
        with engine(args, args.batch, longest, stream_interval=args.interval) as running:
            of_arm = partial(generate_all, running, requests)
            running.loop.run_until_complete(of_arm(WARM_TOKENS))
            within = running.loop.run_until_complete(of_arm(max(1, tokens_within_budget(args)))) if share else None
            if share:
                share.write_text(str(args.share))
            marks, tokens = running.loop.run_until_complete(of_arm(args.output))
            print(f"{args.arm}: {args.batch} x {args.output} tokens in {marks[-1][1]:.1f} s", flush=True)
            return {"marks": marks, "tokens": within[1] if within else tokens}


async def generate_all(
    running: Any, requests: list[list[int]], tokens: int
) -> tuple[list[tuple[int, float]], list[list[int]]]:
    """All requests in one call: (generated tokens, seconds) of the first one, and each one's token ids."""
    began = time.perf_counter()
    marks: list[tuple[int, float]] = []
    found: list[list[int]] = [[] for _ in requests]
    sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0}
    stream = await running.async_generate(input_ids=requests, sampling_params=sampling, stream=True)
    async for chunk in stream:
        found[chunk["index"]] = chunk["output_ids"]
        if chunk["index"] == 0:
            marks.append((chunk["meta_info"]["completion_tokens"], time.perf_counter() - began))
    if any(len(ids) != tokens for ids in found):
        raise RuntimeError(f"generated {sorted({len(ids) for ids in found})} tokens: expected {tokens} each")
    return marks, [list(ids) for ids in found]


if __name__ == "__main__":
    main()
