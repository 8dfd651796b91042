"""One engine of a comparison: decode time by shape, generated tokens, memory, and where a step's time goes.

``decode_engine.py`` starts this in a process of its own, so that an arm leaves nothing behind for the next one.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WARM_STEPS = 8
DENSE = {"cuda": "flashinfer", "cpu": "torch_native"}
SELECTION = ("shortlist_kernel", "emit_kernel", "full_rank_kernel", "full_emit_kernel", "sparse_indptr_kernel")
HOST_CALL = "init_forward_metadata_out_graph"  # the backend's part of a captured step


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
    with engine(args) as running:
        for batch, context in args.shapes:
            measured = measure(running, batch, context, args)
            if f"{batch}x{context}" in args.profile and args.device == "cuda":
                measured["profile"] = profile(running, batch, context)
            result["shapes"][f"{batch}x{context}"] = measured
            print(f"{args.arm}: {batch}x{context} {statistics.median(measured['ms']):.3f} ms/step", flush=True)
        if args.device == "cuda":
            free, total = torch.cuda.mem_get_info()
            result["memory_mib"] = (total - free) >> 20
    return result


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


def profile(running: Any, batch: int, context: int) -> dict[str, Any]:
    """Where the time of captured steps goes, from SGLang's own profiler."""
    with tempfile.TemporaryDirectory() as folder:
        running.start_profile(output_dir=folder, activities=["CPU", "GPU"], with_stack=True, record_shapes=False)
        generate(running, batch, context, WARM_STEPS)
        running.stop_profile()
        traces = sorted(Path(folder).rglob("*.trace.json.gz"))
        events = json.loads(gzip.decompress(traces[0].read_bytes()))["traceEvents"]
    return digest([event for event in events if event.get("ph") == "X"])


def digest(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Microseconds per captured step by kind of kernel, and of host work in the backend's planning."""
    steps = max(1, sum(event["name"].startswith("cudaGraphLaunch") for event in events))
    kernels = [e for e in events if e.get("cat") == "kernel" and e.get("args", {}).get("graph node id")]
    groups: dict[tuple[str, tuple[int, ...]], list[float]] = defaultdict(list)
    for kernel in kernels:
        groups[kernel["name"], tuple(kernel["args"].get("grid", ()))].append(kernel["dur"])
    fewest = min((len(durations) for (name, _), durations in groups.items() if name == "attend_kernel"), default=0)
    us: dict[str, float] = defaultdict(float)
    for (name, _), durations in groups.items():
        us[kind(name, name == "attend_kernel" and len(durations) == fewest)] += sum(durations) / steps
    host = defaultdict(list)
    for event in events:
        if event.get("cat") == "python_function" and event["name"].endswith(HOST_CALL):
            host["lim" if "lim_sglang" in event["name"] else "dense"].append(event["dur"])
    return {
        "steps": steps,
        "us_per_step": {name: round(value, 1) for name, value in sorted(us.items())},
        "host_us_per_step": {name: round(statistics.median(found), 1) for name, found in host.items()},
        "largest": {name[:90]: round(value, 1) for name, value in largest(groups, steps)},
    }


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
