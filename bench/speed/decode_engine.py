"""SGLang's Engine, dense attention against lim: milliseconds per decode step, in one run on one machine.

    python -m bench.speed.decode_engine --model Qwen3-8B --shapes 8x32000 16x16000 1x32000 16x1500
    python -m bench.speed.decode_engine --model Qwen3-32B --tp 2 --profile 8x32000
    python -m bench.speed.decode_engine --model Qwen3-235B-A22B --layers 32 --tp 4 --dp-attention --shapes 8x32000
    python -m bench.speed.decode_engine --model Qwen3.5-35B-A3B --dense-backend auto --decode-only --more-budgets 8192
    python -m bench.speed.decode_engine --device cpu --shapes 1x2000 4x2000 --budget 256 --steps 16

Every arm is a fresh engine in a process of its own, dense and lim in turn, lim once per budget. A shape's prompts are
random tokens, prefilled once; a second call finds them in the radix cache, so the time of ``--steps`` decode steps is
the difference between a long and a short generation. Where no request outgrows the budget, lim must give dense's tokens
exactly, or no speed is reported, unless ``--dense-backend`` or ``--decode-only`` has the arms compute differently;
neither where a long generation took no longer than a short one. On a GPU, weights are dummies of the model's shape:
timings hold, texts do not. On a CPU the embedded model serves, with its weights.

Byte bound: what one GPU must move (``byte_bound``), over the copy bandwidth of the same run; not told for DP attention.
``saved_share`` is what lim saves of a dense step, over what it would save if only these bytes took time.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import shlex
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench import driver
from bench.speed.arms import bench_parser, config_of, default_model, problem, shape_of, start_arm, with_layers
from bench.speed.byte_bound import Config, step_bytes, text_config
from lim_sglang.tools.common import positive

COLUMNS = [
    *("gpu", "model", "tp", "dp", "layers", "batch", "context", "budget", "dense_ms", "lim_ms", "speedup"),
    *("dense_spread_ms", "lim_spread_ms", "dense_tok_s", "lim_tok_s", "byte_bound_share", "extra_mib", "same_tokens"),
    *("collective_share", "dense_backend", "copy_tb_s", "dense_gb", "lim_gb", "dense_bound_ms", "lim_bound_ms"),
    "saved_share",
]
Arms = dict[str, list[dict[str, Any]]]


def main() -> None:
    args = parse()
    budgets = {"lim": args.budget} | {f"lim_{budget}": budget for budget in args.more_budgets}
    arms: Arms = {name: [] for name in ("dense", *budgets)}
    for _round in range(args.rounds):
        for name, runs in arms.items():
            arm = {"arm": "lim", "budget": budgets[name]} if name in budgets else {"arm": name}
            runs.append(start_arm("bench.speed.engine_arm", vars(args) | {"label": name} | arm))
            save(args.out / "decode_engine.json", arms, args.note)  # what is measured so far
        rows = [
            compare_shape(at_budget(args, budget), {"dense": arms["dense"], "lim": arms[name]}, *shape)
            for name, budget in budgets.items()
            for shape in args.shapes
        ]
        driver.write_rows(args.out / "decode_engine.csv", COLUMNS, rows)
    driver.print_rows(rows, COLUMNS[2:])
    driver.exit_on_problems(rows)


def parse() -> argparse.Namespace:
    parser = bench_parser(__doc__)
    shapes = [(8, 32000), (16, 16000), (1, 32000), (16, 1500)]
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=shapes, help="batch x tokens")
    parser.add_argument("--steps", type=int, default=384, help="decode steps per measurement")
    parser.add_argument("--repeats", type=int, default=3, help="measurements per shape and engine")
    parser.add_argument("--rounds", type=int, default=1, help="engines per arm")
    parser.add_argument("--tp", type=int, default=1, help="GPUs that share the heads (1)")
    parser.add_argument("--dp-attention", action="store_true", help="each of --tp GPUs attends for requests of its own")
    parser.add_argument("--layers", type=positive, help="fewer than the model has, where its weights do not fit (all)")
    parser.add_argument("--more-budgets", nargs="+", type=positive, default=[], help="of lim, beside --budget")
    parser.add_argument("--dense-backend", help="of the dense arm; auto for SGLang's own choice (FlashInfer)")
    parser.add_argument("--decode-only", action="store_true", help="lim decodes, what SGLang chooses prefills")
    parser.add_argument("--profile", nargs="*", default=[], help="shapes whose steps are taken apart (GPU)")
    parser.add_argument("--note", help="what a reader must know of this environment; the JSON file keeps it")
    args = parser.parse_args()
    if args.tp > 1 and args.device == "cpu":
        parser.error(f"--tp {args.tp}: expected 1 on a CPU; leave it out, or use --device cuda")
    if args.dp_attention and args.tp == 1:
        parser.error("--dp-attention: needs --tp of 2 or more, whose GPUs then attend for requests of their own")
    if args.layers is not None and args.device == "cpu":
        parser.error(f"--layers {args.layers}: the model on a CPU has weights; leave it out, or use --device cuda")
    args.model = default_model(args, parser)
    if args.layers is not None and args.layers > (most := depth(config_of(args.model))):
        parser.error(f"--layers {args.layers}: the model has {most}; expected 1 to {most}")
    return args


def at_budget(args: argparse.Namespace, budget: int) -> argparse.Namespace:
    return argparse.Namespace(**vars(args) | {"budget": budget})


def compare_shape(args: argparse.Namespace, arms: Arms, batch: int, context: int) -> dict[str, Any]:
    shape = f"{batch}x{context}"
    dense, lim = ([ms for run in arms[arm] for ms in run["shapes"][shape]["ms"]] for arm in ("dense", "lim"))
    same = [
        ours == theirs
        for run, other in zip(arms["lim"], arms["dense"], strict=True)
        for ours, theirs in zip(run["shapes"][shape]["tokens"], other["shapes"][shape]["tokens"], strict=True)
    ]
    config = config_of(args.model)
    published, layers = depth(config), args.layers or depth(config)
    alike = args.dense_backend is None and not args.decode_only
    must_be_same = alike and context + args.steps + 8 <= args.budget
    dense_ms, lim_ms = statistics.median(dense), statistics.median(lim)
    why_not = problem(dense + lim, same, must_be_same)
    row = {
        "gpu": arms["lim"][0].get("gpu", "none"),
        "model": Path(args.model).name,
        "tp": args.tp,
        "dp": args.tp if args.dp_attention else 1,
        "layers": str(layers) if layers == published else f"{layers} of {published}",
        "batch": batch,
        "context": context,
        "budget": args.budget,
        "dense_ms": round(dense_ms, 3),
        "lim_ms": round(lim_ms, 3),
        "speedup": why_not or round(dense_ms / lim_ms, 3),
        "dense_spread_ms": round(max(dense) - min(dense), 3),
        "lim_spread_ms": round(max(lim) - min(lim), 3),
        "same_tokens": f"{sum(same)}/{len(same)}",
        "dense_backend": arms["dense"][0].get("backends", [None])[-1],
    }
    if not why_not:
        row |= {"dense_tok_s": round(batch / dense_ms * 1e3, 1), "lim_tok_s": round(batch / lim_ms * 1e3, 1)}
    if args.device == "cuda":
        copied = statistics.median(run["copy_tb_s"] for run in (*arms["dense"], *arms["lim"]))
        if not (args.dp_attention or why_not):
            ran, middle = with_layers(config, layers), context + args.steps // 2
            moved = (step_bytes(ran, row["model"], batch, middle, k, args.tp) for k in (None, args.budget))
            row |= bounds(moved, copied, dense_ms, lim_ms)
        row["extra_mib"] = arms["lim"][0]["memory_mib"] - arms["dense"][0]["memory_mib"]
        row["collective_share"] = collective_share(*(arms[arm][0]["shapes"][shape] for arm in ("dense", "lim")))
    return row


def bounds(moved: Iterable[int], copied: float, dense_ms: float, lim_ms: float) -> dict[str, Any]:
    """Columns on the bytes of dense's and lim's step, at ``copied`` TB/s, beside the steps measured."""
    dense, lim = moved
    dense_bound, lim_bound = dense / copied / 1e9, lim / copied / 1e9
    return {
        "copy_tb_s": round(copied, 3),
        "dense_gb": round(dense / 1e9, 3),
        "lim_gb": round(lim / 1e9, 3),
        "dense_bound_ms": round(dense_bound, 3),
        "lim_bound_ms": round(lim_bound, 3),
        "byte_bound_share": round(lim_bound / lim_ms, 3),
        "saved_share": round((dense_ms - lim_ms) / (dense_bound - lim_bound), 3) if dense > lim else None,
    }


def depth(config: Config) -> int:
    return int(text_config(config)["num_hidden_layers"])


def collective_share(dense: dict[str, Any], lim: dict[str, Any]) -> float | None:
    """What lim's captured step spends in all-gathers beyond dense's, as a share; None where no profile was taken."""
    profiles = [found.get("profile") or {} for found in (dense, lim)]
    if not all(profile.get("graph_us") for profile in profiles):
        return None
    before, gathering = (profile["us_per_step"].get("all-gather", 0.0) for profile in profiles)
    return round((gathering - before) / float(profiles[1]["graph_us"]), 4)


def save(path: Path, arms: Arms, note: str | None) -> None:
    """All times, without the generated tokens: they are compared already, and long."""
    facts = driver.about()
    if note:
        facts |= {"command": facts["command"].replace(" " + shlex.join(["--note", note]), ""), "note": note}
    kept = copy.deepcopy(arms)
    for run in itertools.chain(*kept.values()):
        for measured in run["shapes"].values():
            del measured["tokens"]
    driver.write_json(path, about=facts, arms=kept)


if __name__ == "__main__":
    main()
