"""One engine of a comparison: decode time by shape, generated tokens, memory, and where a step's time goes.

``decode_engine.py`` starts this in a process of its own, so that an arm leaves nothing behind for the next one.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import host_timer

WARM_STEPS = 8
DENSE = {"cuda": "flashinfer", "cpu": "torch_native"}
SELECTION = ("shortlist_kernel", "emit_kernel", "full_rank_kernel", "full_emit_kernel", "sparse_indptr_kernel")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("request", help="JSON: model, device, arm, budget, shapes, steps, repeats, profile")
    parser.add_argument("result", type=Path)
    args = parser.parse_args()
    args.result.write_text(json.dumps(run_arm(argparse.Namespace(**json.loads(args.request)))))


def run_arm(args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per step and the generated tokens, by shape."""
    result: dict[str, Any] = {"shapes": {}}
    if args.device == "cuda":
        import torch
        from timing import copy_tb_s

        result |= {"gpu": torch.cuda.get_device_name(), "copy_tb_s": copy_tb_s()}
        torch.cuda.empty_cache()
        with tempfile.TemporaryDirectory() as folder:
            times = host_timer.install(Path(folder))
            measure_all(args, result)
            result["host_us_per_step"] = host_timer.read(times)
    else:
        measure_all(args, result)
    return result


def measure_all(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Every shape in one engine, into ``result``."""
    import torch

    with engine(args) as running:
        for batch, context in args.shapes:
            measured = measure(running, batch, context, args)
            if f"{batch}x{context}" in args.profile and args.device == "cuda":
                trace = Path(args.out) / "traces" / f"{args.arm}_{batch}x{context}.json.gz"
                measured["profile"] = profile(running, batch, context, trace)
            result["shapes"][f"{batch}x{context}"] = measured
            print(f"{args.arm}: {batch}x{context} {statistics.median(measured['ms']):.3f} ms/step", flush=True)
        if args.device == "cuda":
            free, total = torch.cuda.mem_get_info()
            result["memory_mib"] = (total - free) >> 20


@contextmanager
def engine(args: argparse.Namespace) -> Iterator[Any]:
    """SGLang's engine for this arm, shut down at the end."""
    os.environ["SGLANG_LIM_CONFIG"] = json.dumps({"budget": args.budget})
    import sglang

    longest = max(context for _, context in args.shapes) + args.steps + WARM_STEPS + 8
    options: dict[str, Any] = {
        "model_path": args.model,
        "attention_backend": "lim" if args.arm == "lim" else DENSE[args.device],
        "skip_tokenizer_init": True,
        "grammar_backend": "none",
        "sampling_backend": "pytorch",
        "random_seed": 0,
        "log_level": "warning",
    }
    if args.device == "cuda":
        options |= {
            "load_format": "dummy",
            "cuda_graph_max_bs_decode": max(batch for batch, _ in args.shapes),
            "disable_prefill_cuda_graph": True,
            "context_length": max(longest, 40960),
            "mem_fraction_static": 0.8,
        }
    else:
        options |= {"dtype": "float32", "max_total_tokens": max(batch for batch, _ in args.shapes) * longest}
    began = time.perf_counter()
    running = sglang.Engine(**options)
    print(f"{args.arm}: engine up in {time.perf_counter() - began:.0f} s", flush=True)
    try:
        yield running
    finally:
        running.shutdown()


def prompts(batch: int, context: int) -> list[list[int]]:
    draw = random.Random(batch * context)
    return [[draw.randrange(1000, 40_000) for _ in range(context)] for _ in range(batch)]


def generate(running: Any, batch: int, context: int, tokens: int) -> tuple[float, list[list[int]]]:
    """Seconds, and the tokens by request."""
    sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0}
    began = time.perf_counter()
    outputs = running.generate(input_ids=prompts(batch, context), sampling_params=sampling)
    return time.perf_counter() - began, [output["output_ids"] for output in outputs]


def measure(running: Any, batch: int, context: int, args: argparse.Namespace) -> dict[str, Any]:
    """A long less a short generation, both from the radix cache, by the difference in steps."""
    generate(running, batch, context, 1)
    times = []
    for _ in range(args.repeats):
        short, _ = generate(running, batch, context, WARM_STEPS)
        long, tokens = generate(running, batch, context, WARM_STEPS + args.steps)
        times.append((long - short) / args.steps * 1e3)
    return {"ms": times, "tokens": tokens}


def profile(running: Any, batch: int, context: int, trace: Path) -> dict[str, Any]:
    """Where the time of captured steps goes, from SGLang's own profiler; the trace is kept at ``trace``."""
    with tempfile.TemporaryDirectory() as folder:
        running.start_profile(output_dir=folder, activities=["CPU", "GPU"], with_stack=False, record_shapes=False)
        generate(running, batch, context, WARM_STEPS)
        running.stop_profile()
        found = next(Path(folder).rglob("*.trace.json.gz"))
        trace.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(found, trace)
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return digest([event for event in events if event.get("ph") == "X"])


def digest(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Microseconds per captured step by kind of kernel, and from the first kernel's start to the last's end.

    Kernels of a captured step carry the correlation of the call that launched its graph.
    """
    steps = {e["args"]["correlation"] for e in events if e["name"].startswith("cudaGraphLaunch")}
    kernels = [e for e in events if e.get("cat") == "kernel" and e["args"]["correlation"] in steps]
    groups: dict[tuple[str, tuple[int, ...]], list[float]] = defaultdict(list)
    by_step: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for kernel in kernels:
        groups[kernel["name"], tuple(kernel["args"].get("grid", ()))].append(kernel["dur"])
        by_step[kernel["args"]["correlation"]].append(kernel)
    fewest = min((len(durations) for (name, _), durations in groups.items() if name == "attend_kernel"), default=0)
    us: dict[str, float] = defaultdict(float)
    for (name, _), durations in groups.items():
        us[kind(name, name == "attend_kernel" and len(durations) == fewest)] += sum(durations) / len(steps)
    return {
        "steps": len(steps),
        "graph_us": round(statistics.median(map(duration, by_step.values())), 1) if by_step else None,
        "us_per_step": {name: round(value, 1) for name, value in sorted(us.items())},
        "largest": {name[:90]: round(value, 1) for name, value in largest(groups, max(1, len(steps)))},
    }


def duration(kernels: list[dict[str, Any]]) -> float:
    """Microseconds from the first start to the last end."""
    return max(kernel["ts"] + kernel["dur"] for kernel in kernels) - min(kernel["ts"] for kernel in kernels)


def largest(groups: dict[tuple[str, tuple[int, ...]], list[float]], steps: int) -> list[tuple[str, float]]:
    totals: dict[str, float] = defaultdict(float)
    for (name, _), durations in groups.items():
        totals[name] += sum(durations) / steps
    return sorted(totals.items(), key=lambda item: -item[1])[:14]


def kind(name: str, selects: bool) -> str:
    """What a kernel belongs to."""
    if name == "attend_kernel":
        return "attention of select layers" if selects else "attention of sparse layers"
    if name in SELECTION:
        return "selection"
    if name == "merge_kernel":
        return "merge of split-KV attention"
    if "flashinfer" in name and ("PagedKVCache" in name or "MergeStates" in name):
        return "FlashInfer attention"
    return "everything else"


if __name__ == "__main__":
    main()
