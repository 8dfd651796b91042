"""One engine of ``long_decode``: the time at which each part of a long generation was there, and the tokens."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.speed import imposed_acceptance
from bench.speed.arms import engine, prompts, serve_arm

WARM_TOKENS = 32


def run_arm(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds by generated tokens of the first request, total seconds, and every request's tokens."""
    requests = prompts(args.batch, args.prompt)
    longest = args.prompt + args.output + 32  # drafts beyond the end have slots, too
    with tempfile.TemporaryDirectory() as folder:
        if args.arm == "lossless":
            imposed_acceptance.install(Path(folder)).write_text(str(args.share))
        return measure(args, requests, longest)


def measure(args: argparse.Namespace, requests: list[list[int]], longest: int) -> dict[str, Any]:
    """The same, of these requests."""
    with engine(args, args.batch, longest, stream_interval=args.interval) as running:
        running.loop.run_until_complete(generate_all(running, requests, WARM_TOKENS))
        marks, tokens = running.loop.run_until_complete(generate_all(running, requests, args.output))
        print(f"{args.arm}: {args.batch} x {args.output} tokens in {marks[-1][1]:.1f} s", flush=True)
        return {"marks": marks, "tokens": tokens}


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
    serve_arm(run_arm, __doc__ or "")
