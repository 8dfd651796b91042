"""SGLang's Engine, dense FlashInfer against lim: milliseconds per decode step, in one run on one machine.

    python bench/decode_engine.py --model .gpu/qwen3-8b --shapes 8x32000 16x16000 1x32000 16x1500

Every arm is a fresh engine in a process of its own, dense and lim in turn. A shape's prompts are random tokens,
prefilled once; a second call finds them in the radix cache, so the time of ``--steps`` decode steps is the difference
between a long and a short generation. Where no request outgrows the budget, lim must give dense's tokens exactly, or
no speed is reported. Weights are dummies (``load_format="dummy"``): timings hold, texts and near-tied scores do not.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WARM_STEPS = 8
COLUMNS = [
    "gpu",
    "model",
    "batch",
    "context",
    "budget",
    "dense_ms",
    "lim_ms",
    "speedup",
    "dense_spread_ms",
    "lim_spread_ms",
    "same_tokens",
]


def main() -> None:
    args = parse()
    if args.arm:
        json.dump(run_arm(args), args.result.open("w"))
        return
    out = args.out
    out.mkdir(parents=True, exist_ok=True)
    arms: dict[str, list[dict[str, Any]]] = {"flashinfer": [], "lim": []}
    for _round in range(args.rounds):
        for arm in arms:
            arms[arm].append(start_arm(args, arm))
    rows = compare(args, arms)
    write(out / "decode_engine.csv", rows)
    for run in (*arms["flashinfer"], *arms["lim"]):
        for measured in run["shapes"].values():
            del measured["tokens"]  # compared already, and long
    (out / "decode_engine.json").write_text(json.dumps({"about": about(), "arms": arms}, indent=1))
    print_table(rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder with config.json")
    parser.add_argument(
        "--shapes", nargs="+", default=["8x32000", "16x16000", "1x32000", "16x1500"], help="batch x tokens"
    )
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=128, help="decode steps per measurement")
    parser.add_argument("--repeats", type=int, default=3, help="measurements per shape and engine")
    parser.add_argument("--rounds", type=int, default=1, help="engines per arm")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--arm", choices=["flashinfer", "lim"], help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def start_arm(args: argparse.Namespace, arm: str) -> dict[str, Any]:
    """Run one arm in a process of its own; its result, or an exit with its last words."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, *sys.argv[1:], "--arm", arm, "--result", str(result)]
        done = subprocess.run(command, check=False)
        if done.returncode or not result.exists():
            sys.exit(f"arm {arm} ended with code {done.returncode}")
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def run_arm(args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per step and the generated tokens, by shape."""
    os.environ["SGLANG_LIM_CONFIG"] = json.dumps({"budget": args.budget})
    import sglang
    import torch

    shapes = [tuple(map(int, shape.split("x"))) for shape in args.shapes]
    longest = max(context for _, context in shapes) + args.steps + WARM_STEPS + 8
    began = time.perf_counter()
    engine = sglang.Engine(
        model_path=args.model,
        load_format="dummy",
        skip_tokenizer_init=True,
        grammar_backend="none",
        sampling_backend="pytorch",
        attention_backend=args.arm,
        cuda_graph_max_bs_decode=max(batch for batch, _ in shapes),
        disable_prefill_cuda_graph=True,
        context_length=max(longest, 40960),
        mem_fraction_static=0.8,
        random_seed=0,
        log_level="warning",
    )
    print(f"{args.arm}: engine up in {time.perf_counter() - began:.0f} s", flush=True)
    result: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "shapes": {}}
    try:
        for batch, context in shapes:
            measured = measure(engine, batch, context, args)
            result["shapes"][f"{batch}x{context}"] = measured
            print(f"{args.arm}: {batch}x{context} {statistics.median(measured['ms']):.3f} ms/step", flush=True)
        result["memory_mib"] = used_mib()
    finally:
        engine.shutdown()
    return result


def measure(engine: Any, batch: int, context: int, args: argparse.Namespace) -> dict[str, Any]:
    draw = random.Random(batch * context)
    prompts = [[draw.randrange(1000, 100_000) for _ in range(context)] for _ in range(batch)]

    def generate(tokens: int) -> tuple[float, list[list[int]]]:
        sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0}
        began = time.perf_counter()
        outputs = engine.generate(input_ids=prompts, sampling_params=sampling)
        return time.perf_counter() - began, [output["output_ids"] for output in outputs]

    generate(1)
    times = []
    for _ in range(args.repeats):
        short, _ = generate(WARM_STEPS)
        long, tokens = generate(WARM_STEPS + args.steps)
        times.append((long - short) / args.steps * 1e3)
    return {"ms": times, "tokens": tokens}


def used_mib() -> int:
    import torch

    free, total = torch.cuda.mem_get_info()
    return (total - free) >> 20


def compare(args: argparse.Namespace, arms: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    rows = []
    for shape in args.shapes:
        batch, context = map(int, shape.split("x"))
        dense, lim = ([ms for run in arms[arm] for ms in run["shapes"][shape]["ms"]] for arm in ("flashinfer", "lim"))
        same = [
            ours == theirs
            for run, other in zip(arms["lim"], arms["flashinfer"], strict=True)
            for ours, theirs in zip(run["shapes"][shape]["tokens"], other["shapes"][shape]["tokens"], strict=True)
        ]
        within = context + args.steps + WARM_STEPS <= args.budget
        speed = statistics.median(dense) / statistics.median(lim)
        rows.append(
            {
                "gpu": arms["lim"][0]["gpu"],
                "model": Path(args.model).name,
                "batch": batch,
                "context": context,
                "budget": args.budget,
                "dense_ms": round(statistics.median(dense), 3),
                "lim_ms": round(statistics.median(lim), 3),
                "speedup": round(speed, 3) if all(same) or not within else "wrong tokens",
                "dense_spread_ms": round(max(dense) - min(dense), 3),
                "lim_spread_ms": round(max(lim) - min(lim), 3),
                "same_tokens": f"{sum(same)}/{len(same)}",
            }
        )
    return rows


def about() -> dict[str, str]:
    from importlib.metadata import version

    found = subprocess.run(["git", "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, check=False)
    packages = {name: version(name) for name in ("torch", "triton", "sglang", "flashinfer-python")}
    return {
        **packages,
        "python": platform.python_version(),
        "commit": os.environ.get("LIM_COMMIT") or found.stdout.strip() or "unknown",
        "command": " ".join(["python", *sys.argv]),
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def print_table(rows: list[dict[str, Any]]) -> None:
    for row in [dict(zip(COLUMNS, COLUMNS, strict=True)), *rows]:
        print("  ".join(f"{row[name]!s:>12}" for name in COLUMNS[2:]))


if __name__ == "__main__":
    main()
