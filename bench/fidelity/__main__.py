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
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from os.path import commonprefix

import torch
from rich.progress import Progress
from torch import Tensor

from bench.fidelity.files import Table, write_facts
from bench.fidelity.policies import policies
from bench.fidelity.subject import Subject, subject_parser
from bench.fidelity.texts import CALIBRATION_TEXT, TEXTS, Recall, recall_prompt
from lim_kernels.select.budget import BudgetParts, split_budget
from lim_sglang.layer_plan import LayerPlan
from lim_sglang.tools.analysis.model import LayerView, Policy, Prefix
from lim_sglang.tools.analysis.plan_search import best_plan, best_plan_within
from lim_sglang.tools.analysis.policies import Dense, LessIsMore
from lim_sglang.tools.analysis.recall import ReuseMeter
from lim_sglang.tools.analysis.streaming import StreamedModel
from lim_sglang.tools.analysis.texts import cut_windows
from lim_sglang.tools.calibrate.command import CONTEXT, DENSE_LAYERS, SAMPLES, WINDOWS

PARTS = ("curves", "plans", "recall", "free")
CURVE_COLUMNS = [
    *("text", "context", "budget", "policy", "plan", "window"),
    *("nll_delta", "kl", "top1", "recall", "attended"),
]
RECALL_COLUMNS = ["task", "context", "depth", "seed", "budget", "policy", "dense_right", "right"]
FREE_COLUMNS = ["prompt", "budget", "policy", "same_tokens", "length", "dense_length"]
CONTEXTS = [1024, 2048, 4096, 7168]
PLAN_CONTEXT, PLAN_BUDGET = 4800, 256
PLANS_BY_HAND = (
    "1+20 2 2+20 2+10 2+15 2+12+20 2+10+15+20 2+8+14+20 2+8+14+20+26 2+6+10+14+18+22+26 2+5+8+11+14+17+20+23+26+28"
)
SIZES = range(3, 13)  # layers that attend to everything, of calibrated plans
FREE_PROMPTS = (
    "Explain step by step why the sky is blue.",
    "A shop sells pens at 3 coins and books at 7 coins. What do 4 pens and 2 books cost? Think step by step.",
    "Write a short story about a lighthouse keeper who finds a letter.",
)
Plan = tuple[int, ...]  # select layers
Arm = tuple[int, str, Plan, Policy]  # a row's budget, policy and plan, and who reads what


def main() -> None:
    args = parse()
    subject = Subject.load(args.model, args.device)
    bench = Bench(subject, args)
    check_names(args, bench)
    write_facts(args.out / "fidelity.json", {"model": subject.folder.name, "layers": subject.model.num_layers})
    with Progress(disable=args.quiet) as progress:
        for part in args.parts:
            getattr(bench, part)(progress)


def parse() -> argparse.Namespace:
    parser = subject_parser(__doc__, CONTEXTS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--budgets", nargs="+", type=int, default=[64, 128, 256, 512, 1024])
    parser.add_argument("--steps", type=int, default=48, help="decode steps per window")
    parser.add_argument("--depths", nargs="+", type=float, default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--recall-contexts", nargs="+", type=int, default=CONTEXTS)
    parser.add_argument("--recall-budget", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--free-tokens", type=int, default=96)
    parser.add_argument("--policies", nargs="+", help="of the part curves, these only")
    parser.add_argument("--plan", action="append", default=[], help="one more plan by hand for the part plans: 1,20")
    return parser.parse_args()


def check_names(args: argparse.Namespace, bench: Bench) -> None:
    """End with one line where a plan or a policy is none of this model's."""
    layers = bench.model.num_layers
    for plan in args.plan:
        if not re.fullmatch(r"\d+(,\d+)*", plan) or not all(int(layer) < layers for layer in plan.split(",")):
            sys.exit(f"fidelity: error: --plan {plan}: expected layers from 0 to {layers - 1}, as in --plan 1,20")
    known = [policy.name for policy, _ in bench.policies(64)]
    wrong = [name for name in args.policies or () if name not in known]
    if wrong:
        sys.exit(f"fidelity: error: --policies {wrong[0]!r}: expected some of {', '.join(map(repr, known))}")


@dataclass(frozen=True)
class Window:
    """A stretch of text: a prefilled prefix, the steps behind it, and what dense attention predicts for them."""

    prefix: Prefix
    ids: list[int]
    targets: Tensor
    dense: Tensor  # [Q, V] float32 log-probabilities


class Bench:
    """One model's measurements."""

    def __init__(self, subject: Subject, args: argparse.Namespace) -> None:
        self.subject, self.args = subject, args
        self.model, self.tokenizer = subject.model, subject.tokenizer

    def policies(self, budget: int) -> list[tuple[Policy, Plan]]:
        return policies(self.model.num_layers, budget, self.subject.select_layers)

    def window(self, text: str, context: int, number: int) -> Window:
        ids = self.subject.stretch(text, context + self.args.steps + 1, number, self.args.windows)
        prefix, steps = self.model.prefill(ids[:context]), ids[context:]
        logits, _ = self.model.decode(prefix, steps[:-1], Dense())
        return Window(prefix, steps[:-1], torch.tensor(steps[1:]), logits.log_softmax(-1).cpu())

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

    def compare_all(
        self, file: str, texts: Sequence[str], contexts: Sequence[int], arms: Sequence[Arm], progress: Progress
    ) -> None:
        """The rows of ``file``: arms of a smaller budget than the context, in windows spread evenly over each text."""
        table = Table(self.args.out / file, CURVE_COLUMNS, keys=6)
        places = [*product(texts, contexts, range(self.args.windows))]
        for text, context, number in progress.track(places, description=file):
            left = []
            for budget, name, plan, policy in arms:
                key = [text, context, budget, name, "+".join(map(str, plan)), number]
                if budget < context and not table.has(key):
                    left.append((key, policy))
            if left:
                window = self.window(text, context, number)
                for key, policy in left:
                    table.add(key, self.compare(window, policy))

    def curves(self, progress: Progress) -> None:
        """Every policy, by text, context and budget."""
        args = self.args
        arms = [
            (budget, policy.name, layers, policy)
            for budget in args.budgets
            for policy, layers in self.policies(budget)
            if args.policies is None or policy.name in args.policies
        ]
        self.compare_all("fidelity.csv", args.texts, args.contexts, arms, progress)

    def plans(self, progress: Progress) -> None:
        """LessIsMore at K = 256 by which layers attend to everything, on texts held out from calibration."""
        split = split_budget(PLAN_BUDGET, 0.25, 4)
        found = self.calibrated(split, progress)
        given = [tuple(map(int, re.split(r"[+,]", plan))) for plan in (*PLANS_BY_HAND.split(), *self.args.plan)]
        by_hand = [plan for plan in given if plan[-1] < self.model.num_layers]
        arms = [
            (PLAN_BUDGET, origin, plan, LessIsMore(LayerPlan.from_select_layers(self.model.num_layers, plan), split))
            for origin, plans in (("by hand", by_hand), ("calibrated", found))
            for plan in plans
        ]
        texts = [text for text in self.args.texts if text != CALIBRATION_TEXT]
        self.compare_all("fidelity_plans.csv", texts, [PLAN_CONTEXT], arms, progress)

    def calibrated(self, split: BudgetParts, progress: Progress) -> list[Plan]:
        """What `lim-sglang calibrate` chooses by the number of layers that attend to everything, and the best two."""
        model = StreamedModel(self.subject.folder, self.args.device, torch.float32)
        windows = cut_windows(self.tokenizer, TEXTS[CALIBRATION_TEXT](), CONTEXT, WINDOWS, SAMPLES)
        meter = ReuseMeter(model.num_layers, split)
        layers = model.forward(windows, SAMPLES, meter)
        for _ in progress.track(layers, model.num_layers + 1, description="calibration"):
            pass
        costs = meter.error.tolist()
        found = [best_plan_within(costs, full) for full in SIZES if full <= model.num_layers]
        found.append(best_plan(costs, 2, DENSE_LAYERS + 2))
        return list(dict.fromkeys(plan.select_layers for plan in found))

    def recall(self, progress: Progress) -> None:
        """Facts hidden at depths of a long context; the question is fed by decode steps."""
        args, filler = self.args, self.subject.ids("licences")
        cases = [*product(("needle", "keys"), args.recall_contexts, args.depths, range(args.seeds))]
        table = Table(args.out / "fidelity_recall.csv", RECALL_COLUMNS, keys=6)
        for case in progress.track(cases, description="recall"):
            keys = [([*case, args.recall_budget, arm.name], arm) for arm, _ in self.policies(args.recall_budget)[:7]]
            left = [(key, arm) for key, arm in keys if not table.has(key)]
            if left:
                prompt = recall_prompt(self.tokenizer, filler, *case)
                prefix = self.model.prefill(prompt.prefix)
                dense = self.answers(prefix, prompt, Dense())
                for key, arm in left:
                    table.add(key, {"dense_right": dense, "right": self.answers(prefix, prompt, arm)})

    def answers(self, prefix: Prefix, prompt: Recall, policy: Policy) -> bool:
        """Whether greedy decoding gives the answer; teacher forcing shows the same, token by token."""
        fed = [*prompt.question, *prompt.answer[:-1]]
        logits, _ = self.model.decode(prefix, fed, policy)
        return logits[len(prompt.question) - 1 :].argmax(-1).tolist() == prompt.answer

    def free(self, progress: Progress) -> None:
        """Greedy generation behind a long text and a question: how many tokens it shares with dense, and its length."""
        budgets = [budget for budget in self.args.budgets if budget in (128, 256, 512)]
        text = self.tokenizer.decode(self.subject.ids("language reference")[:2000])
        table = Table(self.args.out / "fidelity_free.csv", FREE_COLUMNS, keys=3)
        for number, question in enumerate(progress.track(FREE_PROMPTS, description="free")):
            keys = [([number, b, arm.name], arm) for b in budgets for arm, _ in self.policies(b)[:7]]
            left = [(key, arm) for key, arm in keys if not table.has(key)]
            if left:
                chat = [{"role": "user", "content": f"{text}\n\n{question}"}]
                ids = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True).input_ids
                prefix = self.model.prefill(ids)
                dense = self.generate(prefix, Dense())
                for key, arm in left:
                    found = self.generate(prefix, arm)
                    shared = len(commonprefix([dense, found]))
                    table.add(key, {"same_tokens": shared, "length": len(found), "dense_length": len(dense)})

    def generate(self, prefix: Prefix, policy: Policy) -> list[int]:
        """Greedy tokens, up to the end of text or ``--free-tokens``."""
        tokens: list[int] = []
        for token in self.model.generate(prefix, policy):
            tokens.append(token)
            if token == self.tokenizer.eos_token_id or len(tokens) >= self.args.free_tokens:
                break
        return tokens


if __name__ == "__main__":
    main()
