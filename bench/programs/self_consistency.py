"""Self-consistency: several solutions of one problem are forked off a shared prefix, and the majority decides.

    python -m bench.programs.self_consistency --server http://127.0.0.1:30000 --paths 8 --temperature 0.7

At --temperature 0 the paths still differ, by the approach that each is told to take.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import sglang as sgl

from bench.programs.common import Outcome, Show, run_alone, whole
from bench.programs.metering import MeteredEndpoint
from lim_sglang.tools.demo.chat import build_prefix

APPROACHES = ("count up", "use a table", "work backwards", "estimate first", "split the numbers", "draw it")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--paths", type=whole(2, 256), default=5, help="solutions that vote (5)")


def problem(seed: int) -> str:
    rng = Random(f"self-consistency {seed}")
    start, trucks, load, sold = rng.randint(20, 90), rng.randint(2, 8), rng.randint(5, 20), rng.randint(3, 15)
    return (
        f"A depot holds {start} crates. {trucks} trucks bring {load} crates each, then {sold} are sold. How many now?"
    )


@sgl.function
def self_consistency(s: Any, question: str, paths: int) -> dict[str, int]:
    s += sgl.system(build_prefix(8)) + sgl.user(question) + sgl.assistant_begin()
    s.sync()  # fork() reads the shared prefix into the cache only if its text is there by then
    forks = s.fork(paths)
    for number, fork in enumerate(forks, 1):
        approach = APPROACHES[number % len(APPROACHES)]
        fork += f"Path {number}, {approach}:" + sgl.gen("reasoning", stop=["\nAnswer", "\nPath"])
        fork += "\nAnswer:" + sgl.gen("answer", max_tokens=12, stop="\n")
    forks.join()  # from here on s["answer"] is the list of the forks' answers
    winner, votes = majority([last_number(text) for text in s["answer"]])
    s += f"{paths} paths voted: {votes}. The answer is {winner}." + sgl.assistant_end()
    return votes


def last_number(text: str) -> str | None:
    """The last whole number of a text, without thousands separators and leading zeros."""
    found = re.findall(r"-?\d+", re.sub(r"(?<=\d),(?=\d{3})", "", text))
    return str(int(found[-1])) if found else None


def majority(answers: Sequence[str | None]) -> tuple[str | None, dict[str, int]]:
    """The most frequent answer and all votes; of equally frequent ones the first given wins, None has no vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    return (votes.most_common(1)[0][0] if votes else None), dict(votes)


def run(endpoint: MeteredEndpoint, args: argparse.Namespace, show: Show) -> Outcome:
    sampling = {"temperature": args.temperature, "max_new_tokens": args.max_tokens}
    state = self_consistency.run(problem(args.seed), args.paths, backend=endpoint, **sampling)
    transcript = state.text()
    answers = state["answer"]
    chains = [list(pair) for pair in zip(state["reasoning"], answers, strict=True)]
    winner, votes = majority([last_number(text) for text in answers])
    return Outcome(winner or "none", chains, transcript, {"answers": answers, "votes": votes})


if __name__ == "__main__":
    run_alone(sys.modules[__name__], __doc__ or "")
