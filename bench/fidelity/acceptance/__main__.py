"""How many of its own sparse drafts a model accepts when dense attention verifies them.

    python -m bench.fidelity.acceptance --out bench/results                        everything, on the embedded model
    python -m bench.fidelity.acceptance --budgets 256 --temperatures 0 --windows 1  a part of it

The dense model writes on behind real text, at every temperature by itself. Rounds start inside of what it wrote: from
there k tokens are drafted with sparse attention, in one of four ways (``lim steps`` select in every draft step, ``lim
steps, int8`` as well, with weights rounded to int8, ``kept sets`` are those of the last verified token in every layer,
``window`` is sinks and recent tokens), and the dense model verifies them: greedily by equality, else by rejection with
the drafts' probabilities. A column shows what greedy drafts would give instead. Before a text is measured, drafts that
leave nothing out must be accepted; the run ends otherwise.
Rows are written as they are measured; a second run with the same folder takes up where the first stopped.
``bench.fidelity.acceptance.report`` makes page and plot.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path

import torch
from rich.progress import Progress

from bench.fidelity.acceptance.rounds import (
    INT8,
    KINDS,
    UnequalError,
    Written,
    check,
    check_rounded,
    quantize_model,
    run_round,
    write,
)
from bench.fidelity.files import Table, write_facts
from bench.fidelity.subject import Subject, subject_parser
from lim_sglang.layer_plan import LayerPlan
from lim_sglang.tools.common import positive

COLUMNS = ["text", "context", "window", "temperature", "drafts", "budget", "k", "accepted", "accepted_greedy_drafts"]


def main() -> None:
    args = parse()
    subject = Subject.load(args.model, args.device)
    facts = {"model": subject.folder.name, "layers": subject.model.num_layers, "plan": list(subject.select_layers)}
    sizes = {"tokens": args.tokens, "every": args.every, "most_drafts": max(args.k)}
    path = args.out / "acceptance.json"
    check_sizes(path, sizes)
    write_facts(path, {**facts, **sizes})
    bench = Bench(subject, args)
    with Progress(disable=args.quiet) as progress:
        try:
            bench.run(progress)
        except UnequalError as error:
            sys.exit(f"acceptance: error: {error}; nothing is reported for this text")


def parse() -> argparse.Namespace:
    parser = subject_parser(__doc__, [2000, 5000])
    parser.add_argument("--tokens", type=positive, default=108, help="tokens that the dense model writes")
    parser.add_argument("--every", type=positive, default=6, help="tokens from the start of a round to the next")
    parser.add_argument("--temperatures", nargs="+", type=temperature, default=[0.0, 0.6, 1.0])
    parser.add_argument("--drafts", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--budgets", nargs="+", type=positive, default=[128, 256, 512])
    parser.add_argument("--k", nargs="+", type=positive, default=[4, 6, 8, 12], help="drafts per round")
    args = parser.parse_args()
    if args.tokens < max(args.k) + 2:
        parser.error(f"--tokens {args.tokens}: expected at least {max(args.k) + 2}, two more than --k {max(args.k)}")
    if max(args.budgets) >= min(args.contexts):
        parser.error(
            f"--budgets {max(args.budgets)}: expected less than --contexts {min(args.contexts)}, or nothing is left out"
        )
    return args


def temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 0 (greedy) to 100")
    return value


def check_sizes(path: Path, sizes: dict[str, int]) -> None:
    """End with one line where rows of another run are of other sizes: means over both would mix them."""
    earlier = json.loads(path.read_text()) if path.exists() else sizes
    for name, value in sizes.items():
        if earlier[name] != value:
            sys.exit(
                f"acceptance: error: {path} was begun with {name} {earlier[name]}, not {value}; name another --out"
            )


class Bench:
    """One model's measurements."""

    def __init__(self, subject: Subject, args: argparse.Namespace) -> None:
        self.subject, self.model, self.args = subject, subject.model, args
        self.plan = LayerPlan.from_select_layers(subject.model.num_layers, subject.select_layers)
        self.int8_model = quantize_model(self.model) if INT8 in args.drafts else self.model
        self.starts = range(1, args.tokens - max(args.k), args.every)

    def run(self, progress: Progress) -> None:
        """All rows that are missing; a run that is cut short has every text as often, but for one prompt."""
        args = self.args
        table = Table(args.out / "acceptance.csv", COLUMNS, keys=7)
        prompts = [*product(range(args.windows), args.contexts, args.texts)]
        for window, context, text in progress.track(prompts, description="prompts"):
            prefix = None
            for value in args.temperatures:
                of_text = [text, context, window, f"{value:g}"]
                arms = product(args.drafts, args.budgets)
                left = [arm for arm in arms if not all(table.has([*of_text, *arm, k]) for k in args.k)]
                if left:
                    prefix = prefix or self.model.prefill(self.subject.stretch(text, context, window, args.windows))
                    seed = f"{text} {context} {window} {value}"
                    written = write(self.model, prefix, self.plan, args.budgets, args.tokens, value, seed)
                    check(self.model, self.plan, written, self.starts[0], max(args.k))
                    if INT8 in args.drafts:
                        check_rounded(self.int8_model, self.plan, written, self.starts[:3], max(args.k))
                for arm in left:
                    means = self.measure(written, *arm)
                    for k in args.k:
                        if not table.has([*of_text, *arm, k]):
                            table.add([*of_text, *arm, k], means[k])

    def measure(self, written: Written, kind: str, budget: int) -> dict[int, dict[str, float]]:
        """By ``k``: accepted drafts per round, means over the rounds."""
        longest, model = max(self.args.k), self.model if kind != INT8 else self.int8_model
        rounds = [run_round(model, self.plan, written, start, longest, kind, budget) for start in self.starts]
        accepted = torch.stack([one.chances().cumsum(0) for one in rounds]).mean(0)
        greedy = torch.stack([one.chances(greedy_drafts=True).cumsum(0) for one in rounds]).mean(0)
        return {
            k: {"accepted": float(accepted[k - 1]), "accepted_greedy_drafts": float(greedy[k - 1])} for k in self.args.k
        }


if __name__ == "__main__":
    main()
