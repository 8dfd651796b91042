"""One engine of a comparison: decode time by shape, generated tokens, memory, and where a step's time goes.

``decode_engine`` starts this in a process of its own, so that an arm leaves nothing behind for the next one.
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import json
import shutil
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from bench.speed import host_timer
from bench.speed.arms import WARM_STEPS, decode_ms, engine, generate
from bench.timing import copy_tb_s, used_mib
from lim_sglang.host.compat import effective_args
from lim_sglang.host.finders import attention_backends

WARM_CALLS = 2  # kernels compile at first use, some in a prefill and some in one that finds the cache filled
SELECTION = (
    *("shortlist_kernel", "emit_kernel", "full_rank_kernel", "full_emit_kernel", "sparse_indptr_kernel"),
    *("offer_kernel", "full_offer_kernel", "join_kernel"),
)


def run_arm(args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per step and the generated tokens, by shape."""
    result: dict[str, Any] = {"shapes": {}}
    if args.device == "cuda":
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
    longest = max(context for _, context in args.shapes) + args.steps + WARM_STEPS + 8
    with engine(args, max(batch for batch, _ in args.shapes), longest) as running:
        result["backends"] = attention_backends(effective_args(running.server_args))  # prefill, decode
        for batch, context in args.shapes:
            # With DP attention each GPU's requests come in batches of their own, so more has to be compiled before.
            for _ in range(WARM_CALLS * (args.tp if args.dp_attention else 1)):
                generate(running, batch, context, WARM_STEPS)
            times, tokens = decode_ms(running, batch, context, args.steps, args.repeats)
            measured: dict[str, Any] = {"ms": times, "tokens": tokens}
            if f"{batch}x{context}" in args.profile and args.device == "cuda":
                trace = Path(args.out) / "traces" / f"{args.label}_{batch}x{context}.json.gz"
                measured["profile"] = profile(running, batch, context, trace)
            result["shapes"][f"{batch}x{context}"] = measured
            print(f"{args.label}: {batch}x{context} {statistics.median(times):.3f} ms/step", flush=True)
        if args.device == "cuda":
            result["memory_mib"] = used_mib()


def profile(running: Any, batch: int, context: int, trace: Path) -> dict[str, Any]:
    """Where the time of captured steps goes, from SGLang's own profiler; the trace is kept at ``trace``."""
    with tempfile.TemporaryDirectory() as folder:
        running.start_profile(output_dir=folder, activities=["CPU", "GPU"], with_stack=False, record_shapes=False)
        generate(running, batch, context, WARM_STEPS)
        running.stop_profile()
        found = min(Path(folder).rglob("*.trace.json.gz"))  # of rank 0
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
    us_by_name: dict[str, float] = defaultdict(float)
    for (name, _), durations in groups.items():
        spent = sum(durations) / len(steps)
        us[kind(name, name == "attend_kernel" and len(durations) == fewest)] += spent
        us_by_name[name] += spent
    largest = heapq.nlargest(14, us_by_name.items(), key=lambda item: item[1])
    return {
        "steps": len(steps),
        "graph_us": round(statistics.median(map(duration, by_step.values())), 1) if by_step else None,
        "us_per_step": {name: round(value, 1) for name, value in sorted(us.items())},
        "largest": {name[:90]: round(value, 1) for name, value in largest},
    }


def duration(kernels: list[dict[str, Any]]) -> float:
    """Microseconds from the first start to the last end."""
    return max(kernel["ts"] + kernel["dur"] for kernel in kernels) - min(kernel["ts"] for kernel in kernels)


def kind(name: str, selects: bool) -> str:
    """What a kernel belongs to."""
    if name == "attend_kernel":
        return "attention of select layers" if selects else "attention of sparse layers"
    if name in SELECTION:
        return "selection"
    if "AllGather" in name:
        return "all-gather"
    if name == "merge_kernel":
        return "merge of split-KV attention"
    if "flashinfer" in name and ("PagedKVCache" in name or "MergeStates" in name):
        return "FlashInfer attention"
    return "everything else"
