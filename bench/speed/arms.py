"""SGLang's engine for one arm of a comparison, in a process of its own, and prompts for it.

A module that measures an arm is run with two arguments, a JSON request and the file for its JSON result.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[1] / "models"
MODEL_HELP = "folder with config.json, or a name in bench/models; on a CPU the embedded model if left out"
DENSE = {"cuda": "flashinfer", "cpu": "torch_native"}
LIM: dict[str, dict[str, Any]] = {"lim": {}, "lossless": {"speculative_algorithm": "LIM"}}
"""Options of the arms that are not dense attention."""


def start_arm(module: str, request: dict[str, Any]) -> dict[str, Any]:
    """Run ``bench.speed.<module>`` in a process of its own; its result, or an exit that says which arm failed."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", f"{__package__}.{module}", json.dumps(request, default=str), str(result)]
        done = subprocess.run(command, check=False)
        if done.returncode or not result.exists():
            sys.exit(f"arm {request['arm']} ended with code {done.returncode}")
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def problem(times: Iterable[float], same: Iterable[bool], must_be_same: bool) -> str:
    """What a row says in place of a speed; empty if it may tell one."""
    if must_be_same and not all(same):
        return "wrong tokens"
    return "unsteady" if min(times) <= 0 else ""


def exit_on_problems(rows: Iterable[dict[str, Any]]) -> None:
    """Exit with a line where a row has a problem in place of its speed."""
    if problems := sorted({row["speedup"] for row in rows if isinstance(row["speedup"], str)}):
        sys.exit(f"error: {' and '.join(problems)}: those rows tell no speed")


def serve_arm(run: Callable[[argparse.Namespace], dict[str, Any]], description: str) -> None:
    """The other end of ``start_arm``: parse, run, write."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("request", help="JSON: what decode_engine or long_decode parsed, and the arm")
    parser.add_argument("result", type=Path)
    args = parser.parse_args()
    args.result.write_text(json.dumps(run(argparse.Namespace(**json.loads(args.request)))))


def default_model(args: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """``--model``, a folder or the name of a published config; without it the embedded model on a CPU."""
    if args.model is not None:
        return args.model if Path(args.model).is_dir() else made_model(args.model, parser)
    if args.device == "cuda":
        parser.error("--model is needed on a GPU: a folder with config.json, or a name in bench/models")
    from lim_sglang.tools.servers.embedded_model import ensure_model

    return str(ensure_model())


def made_model(name: str, parser: argparse.ArgumentParser) -> str:
    """A folder with the config of ``bench/models`` of this name, for dummy weights."""
    config = CONFIGS / f"{name}.json"
    if not config.is_file():
        names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.json")))
        parser.error(f"--model {name}: expected a folder with config.json, or one of {names}")
    folder = Path("runs", "models", name)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(config, folder / "config.json")
    return str(folder)


@contextmanager
def engine(args: argparse.Namespace, max_batch: int, longest: int, **more: Any) -> Iterator[Any]:
    """SGLang's engine for this arm, for up to ``max_batch`` requests of ``longest`` tokens; shut down at the end."""
    os.environ["SGLANG_LIM_CONFIG"] = json.dumps({"budget": args.budget})
    import sglang

    options: dict[str, Any] = {
        "model_path": args.model,
        "attention_backend": "lim" if args.arm in LIM else DENSE[args.device],
        "skip_tokenizer_init": True,
        "grammar_backend": "none",
        "sampling_backend": "pytorch",
        "random_seed": 0,
        "log_level": "warning",
    } | LIM.get(args.arm, {})
    if args.device == "cuda":
        options |= {
            "load_format": "dummy",
            "cuda_graph_max_bs_decode": max_batch,
            "disable_prefill_cuda_graph": True,
            "context_length": max(longest, 40960),
            "mem_fraction_static": 0.8,
            "tp_size": getattr(args, "tp", 1),
        }
        if getattr(args, "dp_attention", False):
            options |= {"dp_size": args.tp, "enable_dp_attention": True}
        if layers := getattr(args, "layers", None):
            options["json_model_override_args"] = json.dumps({"num_hidden_layers": layers})
    else:
        options |= {"dtype": "float32", "max_total_tokens": max_batch * longest}
    began = time.perf_counter()
    running = sglang.Engine(**(options | more))
    print(f"{args.arm}: engine up in {time.perf_counter() - began:.0f} s", flush=True)
    try:
        yield running
    finally:
        running.shutdown()


def prompts(batch: int, context: int) -> list[list[int]]:
    draw = random.Random(batch * context)
    return [[draw.randrange(1000, 40_000) for _ in range(context)] for _ in range(batch)]
