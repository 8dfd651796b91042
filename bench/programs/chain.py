"""A long chain of steps: each is generated after all earlier ones, on a scratchpad that only grows.

    python -m bench.programs.chain --server http://127.0.0.1:30000 --steps 12

Run alone, it streams the steps as they come.
"""

from __future__ import annotations

import argparse
import sys
from random import Random
from typing import Any

import sglang as sgl

from bench.programs.common import Outcome, Show, run_alone, whole
from bench.programs.metering import MeteredEndpoint

EXAMPLE = "Step 0: We start with 5 coins. 5 + 4 = 9, so there are 9 coins.\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=whole(1, 10_000), default=8, help="of the chain (8)")


def task(seed: int, steps: int) -> str:
    """A purse, and what happens to it step by step."""
    rng = Random(f"chain {seed}")
    events = [f"{number}. {rng.randint(2, 40)} coins are {rng.choice(['added', 'taken'])}." for number in range(steps)]
    return f"A purse holds {rng.randint(100, 900)} coins. Then, step by step:\n" + "\n".join(events)


@sgl.function
def chain(s: Any, problem: str, steps: int) -> None:
    s += sgl.system("You keep a scratchpad. Write one short step at a time and say how many coins there are.")
    s += sgl.user(problem + "\nHow many coins are there at the end?")
    s += sgl.assistant_begin() + EXAMPLE
    for step in range(1, steps + 1):
        s += f"Step {step}:" + sgl.gen(f"step {step}", stop=["\nStep", "\nAnswer"]) + "\n"
    s += "Answer:" + sgl.gen("answer", max_tokens=12, stop="\n") + sgl.assistant_end()


def run(endpoint: MeteredEndpoint, args: argparse.Namespace, show: Show) -> Outcome:
    sampling = {"temperature": args.temperature, "max_new_tokens": args.max_tokens}
    state = chain.run(task(args.seed, args.steps), args.steps, backend=endpoint, stream=True, **sampling)
    names = [*(f"step {step}" for step in range(1, args.steps + 1)), "answer"]
    for name in names:
        show(f"\n{name}:")
        for piece in state.text_iter(name):
            show(piece)
    # The stream of a name is cut short where its program has ended already; its variable never is.
    texts = [state[name] for name in names]
    return Outcome(texts[-1].strip(), [texts], state.text(), {"steps": args.steps})


if __name__ == "__main__":
    run_alone(sys.modules[__name__], __doc__ or "")
