"""Many documents, one question: a note per document is forked off the long shared prefix, then the answer in steps.

    python -m bench.programs.documents --server http://127.0.0.1:30000 --documents 12

The documents are reports made up from --seed, about 200 tokens each.
"""

from __future__ import annotations

import argparse
import sys
from random import Random
from typing import Any

import sglang as sgl

from bench.programs.common import Outcome, Show, run_alone, whole
from bench.programs.metering import MeteredEndpoint

STATIONS = ("Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Ginkgo", "Hazel")
STEPS = ("compare the gauges", "rule out stations that do not fit", "check against the reports")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--documents", type=whole(2, 500), default=6, help="reports in the shared prefix (6)")


def report(rng: Random, number: int) -> str:
    """One report on a station's water level through a day."""
    station = f"{STATIONS[number % len(STATIONS)]} {number // len(STATIONS) + 1}"
    levels = [rng.randint(100, 900) for _ in range(8)]
    lines = [f"At {3 * i:02d}:00 the gauge read {level} millimetres." for i, level in enumerate(levels)]
    return f"Report {number + 1}, station {station}.\n{' '.join(lines)} The highest was {max(levels)} millimetres.\n"


@sgl.function
def documents(s: Any, reports: list[str]) -> None:
    s += sgl.system("You read reports and answer from them only.\n\n" + "\n".join(reports))
    s += sgl.user("Which station had the highest gauge of all?") + sgl.assistant_begin()
    s.sync()  # fork() reads the shared prefix into the cache only if its text is there by then
    forks = s.fork(len(reports))
    for number, fork in enumerate(forks, 1):
        fork += f"Note on report {number}:" + sgl.gen("note", stop="\n") + "\n"
    forks.join()
    for number, note in enumerate(s["note"], 1):
        s += f"Note on report {number}:{note}\n"
    for step, text in enumerate(STEPS, 1):
        s += f"Step {step}, {text}:" + sgl.gen(f"step {step}", stop=["\nStep", "\nAnswer"]) + "\n"
    s += "Answer: the station" + sgl.gen("answer", max_tokens=12, stop=["\n", "."]) + sgl.assistant_end()


def run(endpoint: MeteredEndpoint, args: argparse.Namespace, show: Show) -> Outcome:
    rng = Random(f"documents {args.seed}")
    reports = [report(rng, number) for number in range(args.documents)]
    sampling = {"temperature": args.temperature, "max_new_tokens": args.max_tokens}
    state = documents.run(reports, backend=endpoint, **sampling)
    transcript, notes = state.text(), state["note"]
    steps = [state[f"step {step}"] for step in range(1, len(STEPS) + 1)] + [state["answer"]]
    return Outcome(state["answer"].strip(), [*([note] for note in notes), steps], transcript, {"notes": notes})


if __name__ == "__main__":
    run_alone(sys.modules[__name__], __doc__ or "")
