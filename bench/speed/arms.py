"""SGLang's engine for one arm of a comparison, in a process of its own, and prompts for it.

A module that measures an arm has ``run_arm``, which takes what its bench parsed, and the arm.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import driver
from bench.driver import Parser
from bench.speed.byte_bound import Config, is_hybrid, text_config

CONFIGS = Path(__file__).parents[1] / "models"
MODEL_HELP = "folder with config.json, or a name in bench/models; on a CPU the embedded model if left out"
DENSE = {"cuda": "flashinfer", "cpu": "torch_native"}
LIM: dict[str, dict[str, Any]] = {"lim": {}, "lossless": {"speculative_algorithm": "LIM"}}
"""Options of the arms that are not dense attention."""
WARM_STEPS = 8
STATES = 64  # at least, of a hybrid: those of cached prompts among them
STATES_PER_REQUEST = 8  # SGLang wants five for each request that runs


def start_arm(module: str, request: dict[str, Any]) -> dict[str, Any]:
    """``run_arm`` of a module, in a process of its own; its result, or an exit that says which arm failed."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "bench.speed.arms", module, json.dumps(request, default=str), str(result)]
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


def main() -> None:
    """The other end of ``start_arm``."""
    module, request, result = sys.argv[1:]
    found = importlib.import_module(module).run_arm(argparse.Namespace(**json.loads(request)))
    Path(result).write_text(json.dumps(found))


def bench_parser(description: str | None) -> Parser:
    """The arguments that every bench of an engine has."""
    found = driver.parser(description)
    found.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    found.add_argument("--model", help=MODEL_HELP)
    found.add_argument("--budget", type=int, default=2048)
    driver.add_out(found)
    return found


def shape_of(text: str) -> tuple[int, int]:
    """``8x32000``: requests and their tokens."""
    batch, context = map(int, text.split("x"))
    return batch, context


def default_model(args: argparse.Namespace, parser: Parser) -> str:
    """``--model``, a folder or the name of a published config; without it the embedded model on a CPU."""
    if args.model is not None:
        return args.model if Path(args.model).is_dir() else made_model(args.model, parser)
    if args.device == "cuda":
        parser.error("--model is needed on a GPU: a folder with config.json, or a name in bench/models")
    from lim_sglang.tools.servers.embedded_model import ensure_model

    return str(ensure_model())


def made_model(name: str, parser: Parser) -> str:
    """A folder with the config of ``bench/models`` of this name, for dummy weights."""
    config = CONFIGS / f"{name}.json"
    if not config.is_file():
        names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.json")))
        parser.error(f"--model {name}: expected a folder with config.json, or one of {names}")
    folder = Path("runs", "models", name)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(config, folder / "config.json")
    return str(folder)


def config_of(model: str) -> Config:
    """The config.json in a model's folder."""
    found: Config = json.loads((Path(model) / "config.json").read_text())
    return found


def with_layers(config: Config, layers: int) -> Config:
    """``config`` with its first ``layers`` layers alone."""
    text = text_config(config)
    lists = [name for name in ("layer_types", "attn_type_list") if name in text]
    first = text | {"num_hidden_layers": layers} | {name: text[name][:layers] for name in lists}
    return config | {"text_config": first} if "text_config" in config else first


def shortened(model: str, layers: int) -> str:
    """A folder with the config of ``model`` with its first ``layers`` layers, for dummy weights."""
    folder = Path("runs", "models", f"{Path(model).name}-{layers}-layers")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(with_layers(config_of(model), layers), indent=2))
    return str(folder)


def backend_options(args: argparse.Namespace) -> dict[str, Any]:
    """The arm's attention backend: lim's, one by name, or the choice of SGLang."""
    if args.arm in LIM:
        phase = "decode_attention_backend" if getattr(args, "decode_only", False) else "attention_backend"
        return {phase: "lim"}
    backend = getattr(args, "dense_backend", None) or DENSE[args.device]
    return {} if backend == "auto" else {"attention_backend": backend}


def model_options(config: Config, requests: int) -> dict[str, Any]:
    """What a model needs beside the usual options: no images, as its folder has no processor; room for its states.

    By itself SGLang gives nearly half of a hybrid's memory to states, and caches of long contexts do not fit.
    """
    found: dict[str, Any] = {"enable_multimodal": False} if "vision_config" in config else {}
    if is_hybrid(text_config(config)):
        states = max(STATES_PER_REQUEST * requests, STATES)
        found |= {"max_running_requests": requests, "max_mamba_cache_size": states}
    return found


@contextmanager
def engine(args: argparse.Namespace, max_batch: int, longest: int, **more: Any) -> Iterator[Any]:
    """SGLang's engine for this arm, for up to ``max_batch`` requests of ``longest`` tokens; shut down at the end."""
    config = {"budget": args.budget}
    if args.arm == "lossless":
        config["draft_weights"] = getattr(args, "draft_weights", "auto")
    os.environ["SGLANG_LIM_CONFIG"] = json.dumps(config)
    import sglang

    options: dict[str, Any] = {
        "model_path": args.model,
        "skip_tokenizer_init": True,
        "grammar_backend": "none",
        "sampling_backend": "pytorch",
        "random_seed": 0,
        "log_level": "warning",
    }
    groups = args.tp if getattr(args, "dp_attention", False) else 1
    options |= backend_options(args) | model_options(config_of(args.model), max_batch * groups) | LIM.get(args.arm, {})
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
            options["model_path"] = shortened(args.model, layers)
    else:
        options |= {"dtype": "float32", "max_total_tokens": max_batch * longest}
    began = time.perf_counter()
    running = sglang.Engine(**(options | more))
    print(f"{args.arm}: engine up in {time.perf_counter() - began:.0f} s", flush=True)
    try:
        yield running
    finally:
        running.shutdown()


def generate(running: Any, batch: int, context: int, tokens: int) -> tuple[float, list[list[int]]]:
    """Greedy tokens of a batch: seconds, and the tokens by request."""
    sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0}
    began = time.perf_counter()
    outputs = running.generate(input_ids=prompts(batch, context), sampling_params=sampling)
    return time.perf_counter() - began, [output["output_ids"] for output in outputs]


def decode_ms(running: Any, batch: int, context: int, tokens: int, repeats: int) -> tuple[list[float], list[list[int]]]:
    """Milliseconds per token of ``tokens``: long less short generations, both from the radix cache; the last tokens."""
    times: list[float] = []
    found: list[list[int]] = []
    for _ in range(repeats):
        short, _ = generate(running, batch, context, WARM_STEPS)
        long, found = generate(running, batch, context, WARM_STEPS + tokens)
        times.append((long - short) / tokens * 1e3)
    return times, found


def prompts(batch: int, context: int) -> list[list[int]]:
    draw = random.Random(batch * context)
    return [[draw.randrange(1000, 40_000) for _ in range(context)] for _ in range(batch)]


if __name__ == "__main__":
    main()
