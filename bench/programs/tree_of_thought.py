"""Tree of thought: every kept thought branches, `select` scores the branches, and all but a beam of them is pruned.

    python -m bench.programs.tree_of_thought --server http://127.0.0.1:30000 --depth 3 --branches 3 --beam 2

A branch's score is the log-probability of " yes" less that of " no" after asking whether its step is right.
"""

from __future__ import annotations

import argparse
import sys
from random import Random
from typing import Any

import sglang as sgl

from bench.programs.common import Outcome, Show, run_alone, whole
from bench.programs.metering import MeteredEndpoint
from lim_sglang.tools.demo.chat import build_prefix

CHOICES = (" yes", " no")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--depth", type=whole(1, 64), default=2, help="levels of the tree (2)")
    parser.add_argument("--branches", type=whole(2, 64), default=3, help="of every kept thought (3)")
    parser.add_argument("--beam", type=whole(1, 64), default=2, help="thoughts kept per level (2)")


@sgl.function
def tree_of_thought(s: Any, question: str, depth: int, branches: int, beam: int) -> list[list[dict[str, Any]]]:
    s += sgl.system(build_prefix(8)) + sgl.user(question) + sgl.assistant_begin()
    kept, groups, levels = [s], [], []
    for level in range(1, depth + 1):
        grown = []
        for parent in kept:
            parent.sync()  # fork() reads the shared prefix into the cache only if its text is there by then
            groups.append(parent.fork(branches))
            for number, branch in enumerate(groups[-1], 1):
                branch += f"Step {level}, idea {number}:" + sgl.gen(f"thought {level}", stop=["\nStep"]) + "\n"
                grown.append(branch)
        scores = score(grown)
        order = sorted(range(len(grown)), key=lambda index: -scores[index])[:beam]
        thoughts = [branch[f"thought {level}"] for branch in grown]
        levels.append([{"text": t, "score": scores[i], "kept": i in order} for i, t in enumerate(thoughts)])
        kept = [grown[index] for index in order]
    best = kept[0]
    best += "Answer:" + sgl.gen("answer", max_tokens=12, stop="\n") + sgl.assistant_end()
    s["answer"], s["best"] = best["answer"], best.text()
    for group in reversed(groups):
        group.join()  # a fork that is never joined keeps its thread
    return levels


def score(branches: list[Any]) -> list[float]:
    """A judge forked off every branch; the branch itself never sees the verdict."""
    groups = [branch.fork(1) for branch in branches]
    for group in groups:
        group += "Is this step right? Verdict:" + sgl.select("verdict", list(CHOICES))
    logprobs = [group[0].get_meta_info("verdict")["normalized_prompt_logprobs"] for group in groups]
    for group in groups:
        group[0].stream_executor.end()  # not join(), which would copy the verdict into the branch
    return [float(yes - no) for yes, no in logprobs]


def run(endpoint: MeteredEndpoint, args: argparse.Namespace, show: Show) -> Outcome:
    rng = Random(f"tree of thought {args.seed}")
    question = "Make 24 of the numbers " + ", ".join(str(rng.randint(1, 13)) for _ in range(4)) + ", step by step."
    sampling = {"temperature": args.temperature, "max_new_tokens": args.max_tokens}
    state = tree_of_thought.run(question, args.depth, args.branches, args.beam, backend=endpoint, **sampling)
    levels, answer = state.ret_value, state["answer"]
    chains = [[thought["text"]] for level in levels for thought in level] + [[answer]]
    return Outcome(answer.strip(), chains, state["best"], {"levels": levels})


if __name__ == "__main__":
    run_alone(sys.modules[__name__], __doc__ or "")
