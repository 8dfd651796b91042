"""The command `lim-sglang calibrate`: choose a model's select layers from its own attention on text."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from lim_sglang.config import LimConfig
from lim_sglang.tools.analysis.plan_search import Costs, FoundPlan, best_plan, best_plan_within
from lim_sglang.tools.calibrate.report import Calibration, print_report
from lim_sglang.tools.common import CommandError, add_config_arguments, check_out, config_of, integer, run, write_out

if TYPE_CHECKING:
    import torch

    from lim_sglang.tools.analysis.recall import ReuseMeter
    from lim_sglang.tools.analysis.streaming import LayerSample, StreamedModel

SAMPLES = 48  # tokens at the end of every window whose attention is measured
CONTEXT, WINDOWS = 4096, 6
DENSE_LAYERS = 2  # in front of the first select layer at most, where only the number of select layers is given
FULL_LAYERS = 4  # DENSE_LAYERS and two select layers, the size of the paper's plans (arXiv 2508.07101)
SHOWN_SELECTS = (2, 3, 4, 6)
DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lim-sglang calibrate`; numbers stay text and are judged with the configuration."""
    parser.add_argument("model", metavar="MODEL", help="folder of a Hugging Face model: safetensors, plain or FP8")
    parser.add_argument(
        "--text", nargs="+", action="extend", default=[], metavar="FILE", help="UTF-8 text (Python's help topics)"
    )
    parser.add_argument("--context", metavar="N", help=f"tokens of a window of text ({CONTEXT}, or the model's limit)")
    parser.add_argument("--windows", metavar="N", default=str(WINDOWS), help=f"windows of text ({WINDOWS})")
    add_config_arguments(parser, ("budget", "recency_ratio", "sink_tokens"))
    parser.add_argument(
        "--bytes",
        metavar="F",
        help=f"largest share of attending layers that read everything, 0 to 1 (that of {FULL_LAYERS} layers)",
    )
    parser.add_argument("--select", metavar="N", help="number of select layers; alone, behind 2 dense layers at most")
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (a GPU if there is one)")
    parser.add_argument("--dtype", default="auto", help=f"{', '.join(DTYPES)} (float32 on a CPU, else the model's)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="configuration to write (lim-MODEL.json)")


def run_calibrate(args: argparse.Namespace) -> int:
    """Calibrate; the exit code."""
    return run(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    began = time.perf_counter()
    config = config_of(args)
    folder = Path(args.model)
    out = args.out or Path(f"lim-{folder.resolve().name}.json")
    check_out(out)
    model = _open_model(folder, args.device, args.dtype)
    max_full, selects = wanted_size(args.bytes, args.select, len(model.attending))
    windows = _windows(args, folder, model.config.max_position_embeddings, config)
    meter = _measure(model, windows, config)
    costs = meter.error.tolist()
    plan = best_plan_within(costs, max_full) if selects is None else best_plan(costs, selects, max_full)
    calibration = Calibration(
        folder=folder,
        config=replace(config, select_layers=plan.numbers(model.attending)),
        layers=model.attending,
        plan=plan,
        others=plans_of_sizes(costs),
        recall=meter.recall.tolist(),
        context=len(windows[0]),
        windows=len(windows),
        samples=SAMPLES,
    )
    chosen = calibration.config.to_dict()
    for key in ("drafts", "draft_weights"):
        del chosen[key]  # not judged here, and the file would win over the environment
    write_out(out, json.dumps(chosen) + "\n")
    print_report(calibration, out)
    peak, kind = peak_memory(model.device)
    print(f"\nTook {time.perf_counter() - began:.0f} s and at most {peak / 2**30:.1f} GiB of {kind}", file=sys.stderr)


def peak_memory(device: torch.device) -> tuple[int, str]:
    """The most bytes that this process held where the model ran, and what they are."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device), "GPU memory"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "memory"


# Plans


def wanted_size(share: str | None, selects: str | None, num_layers: int) -> tuple[int, int | None]:
    """Judge ``--bytes`` and ``--select`` for a model in which ``num_layers`` attend: the most layers that may read
    everything, and the number of select layers, None for any.

    Raises:
        CommandError: a value is malformed, or no plan is that small.
    """
    number = None if selects is None else integer("--select", selects, 1, num_layers)
    if share is None:
        return min(num_layers, FULL_LAYERS if number is None else DENSE_LAYERS + number), number
    try:
        value = float(share)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise CommandError(f"--bytes {share}: expected a number above 0 and up to 1; for example --bytes 0.2")
    full = math.floor(value * num_layers + 1e-9)
    if full < (number or 1):
        needed = number or 1
        smallest = math.ceil(needed / num_layers * 1e4) / 1e4
        raise CommandError(
            f"--bytes {share} lets {full} of {num_layers} attending layers read everything: expected at least "
            f"{smallest}, the share of {needed} select layer{'s' * (needed > 1)} and none before; for example "
            f"--bytes {smallest}"
        )
    return full, number


def plans_of_sizes(costs: Costs) -> tuple[FoundPlan, ...]:
    """The best plans of ``SHOWN_SELECTS`` select layers with at most ``DENSE_LAYERS`` dense ones before them."""
    return tuple(best_plan(costs, number, DENSE_LAYERS + number) for number in SHOWN_SELECTS if number <= len(costs))


# The measurement


def _open_model(folder: Path, device: str, dtype: str) -> StreamedModel:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        import torch

        from lim_sglang.tools.analysis.streaming import StreamedModel
    except ImportError as error:
        raise CommandError(f"{error}; install SGLang, which brings torch and transformers") from error
    if dtype not in DTYPES:
        raise CommandError(f"--dtype {dtype}: expected one of {', '.join(DTYPES)}; for example --dtype bfloat16")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if not re.fullmatch("cpu|cuda(:[0-9]+)?", device):
            raise ValueError("expected cpu, cuda or cuda:N")
        torch.empty(1, device=device)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise CommandError(f"--device {device} cannot be used: {error}; for example --device cpu") from error
    by_device = torch.float32 if device == "cpu" else None
    return StreamedModel(folder, device, by_device if dtype == "auto" else getattr(torch, dtype))


def _windows(args: argparse.Namespace, folder: Path, longest: int, config: LimConfig) -> list[list[int]]:
    from transformers import AutoTokenizer

    from lim_sglang.tools.analysis.texts import cut_windows, read_texts

    count = integer("--windows", args.windows, 1, 10_000)
    context = min(CONTEXT, longest) if args.context is None else integer("--context", args.context, SAMPLES, longest)
    if context <= config.budget:
        raise CommandError(
            f"--budget {config.budget} with --context {context}: expected a context above the budget, else every set "
            f"holds all tokens; for example --budget {max(1, context // 16)}"
        )
    text = read_texts(args.text)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CommandError(f"{folder}: its tokenizer cannot be read: {error}") from error
    return cut_windows(tokenizer, text, context, count, SAMPLES)


def _measure(model: StreamedModel, windows: list[list[int]], config: LimConfig) -> ReuseMeter:
    """Run all windows through the model, with a bar on stderr."""
    from lim_sglang.tools.analysis.recall import ReuseMeter

    meter = ReuseMeter(len(model.attending), config.parts)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("layers × windows", total=len(model.attending) * len(windows))

        def observe(sample: LayerSample) -> None:
            meter(sample)
            progress.advance(task)

        for _ in model.forward(windows, SAMPLES, observe):
            pass
    if not meter.error.isfinite().all():
        raise CommandError(f"attention is not finite in {model.dtype}; take --dtype float32")
    return meter
