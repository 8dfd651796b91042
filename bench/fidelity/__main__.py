"""What sparsity costs a model's predictions: LessIsMore, its rivals and its parts, against dense attention.

    python -m bench.fidelity --out bench/results              everything, on the embedded model
    python -m bench.fidelity --parts curves --budgets 256     a part of it

After a dense prefill of real text, decode steps are teacher-forced: every policy sees the same tokens, while keys and
values of the steps are its own. Parts: ``curves`` (KL to dense, difference in negative log-likelihood, top-1 agreement,
attention recall, attended tokens), ``plans`` (LessIsMore by the layers that stay full: plans by hand, and those that
calibration on one text chooses, all measured on the other texts), ``recall`` (facts hidden
in long contexts), ``free`` (how long greedy generation stays with dense). Rows are written as they are measured; a
second run with the same folder takes up where the first stopped. ``bench.fidelity.report`` makes page and plots.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from bench import driver
from bench.fidelity.files import Table, write_facts
from bench.fidelity.plans import BY_HAND, HELD_OUT, calibrated
from bench.fidelity.policies import policies
from bench.fidelity.subject import Subject
from bench.fidelity.texts import TEXTS, Recall, recall_prompt
from lim_kernels.select.budget import split_budget
from lim_sglang.layer_plan import LayerPlan
from lim_sglang.tools.analysis.model import LayerView, Policy, Prefix
from lim_sglang.tools.analysis.policies import Dense, LessIsMore

CURVE_COLUMNS = [
    "text",
    "context",
    "budget",
    "policy",
    "plan",
    "window",
    "nll_delta",
    "kl",
    "top1",
    "recall",
    "attended",
]
RECALL_COLUMNS = ["task", "context", "depth", "seed", "budget", "policy", "dense_right", "right"]
FREE_COLUMNS = ["prompt", "budget", "policy", "same_tokens", "length", "dense_length"]
PLAN_CONTEXT = 4800
FREE_PROMPTS = (
    "Explain step by step why the sky is blue.",
    "A shop sells pens at 3 coins and books at 7 coins. What do 4 pens and 2 books cost? Think step by step.",
    "Write a short story about a lighthouse keeper who finds a letter.",
)


def main() -> None:
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    subject = Subject.load(args.model, args.device)
    bench = Bench(subject, args)
    check_names(args, bench)
    write_facts(args.out / "fidelity.json", {"model": subject.folder.name, "layers": subject.model.num_layers})
    with Progress(disable=args.quiet) as progress:
        for part in args.parts:
            getattr(bench, part)(progress)


def parse() -> argparse.Namespace:
    parser = driver.parser(__doc__)
    parser.add_argument("--model", help="folder of a model; the embedded one if left out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=["curves", "recall", "free", "plans"],
        default=["curves", "plans", "recall", "free"],
    )
    parser.add_argument("--contexts", nargs="+", type=int, default=[1024, 2048, 4096, 7168])
    parser.add_argument("--budgets", nargs="+", type=int, default=[64, 128, 256, 512, 1024])
    parser.add_argument("--texts", nargs="+", choices=list(TEXTS), default=list(TEXTS))
    parser.add_argument("--windows", type=int, default=2, help="windows per text and context")
    parser.add_argument("--steps", type=int, default=48, help="decode steps per window")
    parser.add_argument("--depths", nargs="+", type=float, default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--recall-contexts", nargs="+", type=int, default=[1024, 2048, 4096, 7168])
    parser.add_argument("--recall-budget", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--free-tokens", type=int, default=96)
    parser.add_argument("--policies", nargs="+", help="of the part curves, these only")
    parser.add_argument("--plan", action="append", default=[], help="one more plan by hand for the part plans: 1,20")
    driver.add_out(parser)
    parser.add_argument("--quiet", action="store_true")
    return parser.parse_args()


def check_names(args: argparse.Namespace, bench: Bench) -> None:
    """End with one line where a plan or a policy is none of this model's."""
    layers = bench.model.num_layers
    for plan in args.plan:
        if not re.fullmatch(r"\d+(,\d+)*", plan) or not all(int(layer) < layers for layer in plan.split(",")):
            sys.exit(f"fidelity: error: --plan {plan}: expected layers from 0 to {layers - 1}, as in --plan 1,20")
    known = [policy.name for policy, _ in policies(layers, 64, bench.select_layers)]
    wrong = [name for name in args.policies or () if name not in known]
    if wrong:
        sys.exit(f"fidelity: error: --policies {wrong[0]!r}: expected some of {', '.join(map(repr, known))}")


@dataclass(frozen=True)
class Window:
    """A stretch of text: a prefilled prefix, the steps behind it, and what dense attention predicts for them."""

    text: str
    context: int
    number: int
    prefix: Prefix
    ids: list[int]
    targets: Tensor
    dense: Tensor  # [Q, V] float32 log-probabilities


class Bench:
    """One model's measurements."""

    def __init__(self, subject: Subject, args: argparse.Namespace) -> None:
        self.subject, self.args = subject, args
        self.model, self.tokenizer, self.select_layers = subject.model, subject.tokenizer, subject.select_layers

    def windows(
        self, contexts: Sequence[int], progress: Progress, label: str, done: Callable[[str, int, int], bool]
    ) -> Iterator[Window]:
        """All windows with something left to measure; spread evenly over each text."""
        args = self.args
        task = progress.add_task(label, total=len(args.texts) * len(contexts) * args.windows)
        for text in args.texts:
            for context in contexts:
                for number in range(args.windows):
                    if not done(text, context, number):
                        yield self.window(text, context, number)
                    progress.advance(task)

    def window(self, text: str, context: int, number: int) -> Window:
        ids = self.subject.stretch(text, context + self.args.steps + 1, number, self.args.windows)
        prefix, steps = self.model.prefill(ids[:context]), ids[context:]
        logits, _ = self.model.decode(prefix, steps[:-1], Dense())
        return Window(text, context, number, prefix, steps[:-1], torch.tensor(steps[1:]), logits.log_softmax(-1).cpu())

    def compare(self, window: Window, policy: Policy) -> dict[str, float]:
        """A policy's predictions for a window, means over its steps."""
        recall, attended = [], []

        def observe(view: LayerView, mask: Tensor) -> None:
            attended.append(float((mask & view.causal).expand_as(view.scores).sum(-1).float().mean()))
            if attended[-1] < float(view.lengths.float().mean()):
                recall.append(float((view.weights(view.causal) * mask).sum(-1).mean()))

        logits, _ = self.model.decode(window.prefix, window.ids, policy, observe)
        found = logits.log_softmax(-1).cpu()
        kl = (window.dense.exp() * (window.dense - found)).sum(-1)
        at = window.targets[:, None]
        return {
            "nll_delta": float((window.dense.gather(1, at) - found.gather(1, at)).mean()),
            "kl": float(kl.mean()),
            "top1": float((window.dense.argmax(-1) == found.argmax(-1)).float().mean()),
            "recall": sum(recall) / len(recall) if recall else 1.0,
            "attended": sum(attended) / len(attended),
        }

    def curves(self, progress: Progress) -> None:
        """Every policy, by text, context and budget."""
        with Table(self.args.out / "fidelity.csv", CURVE_COLUMNS, keys=6) as table:
            chosen = self.args.policies
            arms = {
                b: [arm for arm in policies(self.model.num_layers, b, self.select_layers) if arm_wanted(arm[0], chosen)]
                for b in self.args.budgets
            }

            def key(
                text: str, context: int, number: int, budget: int, arm: tuple[Policy, tuple[int, ...]]
            ) -> list[Any]:
                return [text, context, budget, arm[0].name, plan_name(arm[1]), number]

            def left(text: str, context: int, number: int) -> list[tuple[list[Any], Policy]]:
                keys = [(key(text, context, number, b, arm), arm[0]) for b in arms if b < context for arm in arms[b]]
                return [(k, policy) for k, policy in keys if not table.has(k)]

            for window in self.windows(self.args.contexts, progress, "curves", lambda *at: not left(*at)):
                for row_key, policy in left(window.text, window.context, window.number):
                    table.add(row_key, self.compare(window, policy))

    def plans(self, progress: Progress) -> None:
        """LessIsMore at K = 256 by which layers attend to everything, on texts held out from calibration."""
        split = split_budget(256, 0.25, 4)
        task = progress.add_task("calibration", total=1.0)
        found = calibrated(
            self.subject.folder,
            self.tokenizer,
            self.args.device,
            split,
            lambda share: progress.update(task, completed=share),
        )
        given = [tuple(map(int, plan.split(","))) for plan in self.args.plan]
        by_hand = [plan for plan in (*BY_HAND, *given) if plan[-1] < self.model.num_layers]
        plans = [("by hand", plan) for plan in by_hand] + [("calibrated", plan) for plan in found]
        with Table(self.args.out / "fidelity_plans.csv", CURVE_COLUMNS, keys=6) as table:

            def left(text: str, context: int, number: int) -> list[tuple[list[Any], tuple[int, ...]]]:
                keys = [([text, context, 256, origin, plan_name(plan), number], plan) for origin, plan in plans]
                return [(k, plan) for k, plan in keys if text in HELD_OUT and not table.has(k)]

            for window in self.windows([PLAN_CONTEXT], progress, "plans", lambda *at: not left(*at)):
                for row_key, plan in left(window.text, window.context, window.number):
                    layers = LayerPlan.from_select_layers(self.model.num_layers, plan)
                    table.add(row_key, self.compare(window, LessIsMore(layers, split)))

    def recall(self, progress: Progress) -> None:
        """Facts hidden at depths of a long context; the question is fed by decode steps."""
        args = self.args
        cases = [
            (task, context, depth, seed)
            for task in ("needle", "keys")
            for context in args.recall_contexts
            for depth in args.depths
            for seed in range(args.seeds)
        ]
        filler = self.subject.ids("licences")
        arms = [arm for arm, _ in policies(self.model.num_layers, args.recall_budget, self.select_layers)][:7]
        with Table(args.out / "fidelity_recall.csv", RECALL_COLUMNS, keys=6) as table:
            for task, context, depth, seed in progress.track(cases, description="recall"):
                keys = [[task, context, depth, seed, args.recall_budget, arm.name] for arm in arms]
                if all(table.has(key) for key in keys):
                    continue
                prompt = recall_prompt(self.tokenizer, filler, task, context, depth, seed)
                prefix = self.model.prefill(prompt.prefix)
                dense = self.answers(prefix, prompt, Dense())
                for key, arm in zip(keys, arms, strict=True):
                    if not table.has(key):
                        right = self.answers(prefix, prompt, arm)
                        table.add(key, {"dense_right": int(dense), "right": int(right)})

    def answers(self, prefix: Prefix, prompt: Recall, policy: Policy) -> bool:
        """Whether greedy decoding gives the answer; teacher forcing shows the same, token by token."""
        fed = [*prompt.question, *prompt.answer[:-1]]
        logits, _ = self.model.decode(prefix, fed, policy)
        return logits[len(prompt.question) - 1 :].argmax(-1).tolist() == prompt.answer

    def free(self, progress: Progress) -> None:
        """Greedy generation behind a long text and a question: how many tokens it shares with dense, and its length."""
        args = self.args
        with Table(args.out / "fidelity_free.csv", FREE_COLUMNS, keys=3) as table:
            for number, question in enumerate(progress.track(FREE_PROMPTS, description="free")):
                message = self.tokenizer.decode(self.subject.ids("language reference")[:2000]) + "\n\n" + question
                chat = [{"role": "user", "content": message}]
                ids = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)[
                    "input_ids"
                ]
                prefix = self.model.prefill(ids)
                dense: list[int] | None = None
                for budget in (b for b in args.budgets if b in (128, 256, 512)):
                    for arm, _ in policies(self.model.num_layers, budget, self.select_layers)[:7]:
                        key = [number, budget, arm.name]
                        if table.has(key):
                            continue
                        dense = dense or self.generate(prefix, Dense())
                        found = self.generate(prefix, arm)
                        same = next((i for i, (a, b) in enumerate(zip(dense, found, strict=False)) if a != b), None)
                        shared = min(len(dense), len(found)) if same is None else same
                        table.add(key, {"same_tokens": shared, "length": len(found), "dense_length": len(dense)})

    def generate(self, prefix: Prefix, policy: Policy) -> list[int]:
        """Greedy tokens, up to the end of text or ``--free-tokens``."""
        tokens: list[int] = []
        for token in self.model.generate(prefix, policy):
            tokens.append(token)
            if token == self.tokenizer.eos_token_id or len(tokens) >= self.args.free_tokens:
                break
        return tokens


def arm_wanted(policy: Policy, names: Sequence[str] | None) -> bool:
    return names is None or policy.name in names


def plan_name(layers: Sequence[int]) -> str:
    return "+".join(map(str, layers))


if __name__ == "__main__":
    main()
