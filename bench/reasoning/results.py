"""One run's folder, which grows sample by sample and can be taken up again, and the figures made of it."""

from __future__ import annotations

import fcntl
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from rich.table import Table

from bench.reasoning.data import ReasoningError
from bench.reasoning.grade import is_correct, majority

SETTINGS, SAMPLES, SUMMARY = "settings.json", "samples.jsonl", "summary.json"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One answer, graded; or, with ``error``, a request that failed and is not graded.

    Attributes:
        sample: number among the samples of its problem, from 0.
        extracted: the answer as the text gives it; None if it gives none.
        finish_reason: the server's; ``length`` when the text was cut at the maximum length.
        started: Unix time.
        seconds: until the answer was there, repeated attempts included.
    """

    problem: str
    sample: int
    seed: int
    correct: bool | None = None
    extracted: str | None = None
    expected: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    started: float
    seconds: float
    text: str = ""
    error: str | None = None


class RunFolder:
    """``settings.json`` and ``samples.jsonl``, held by one process at a time.

    Attributes:
        samples: the latest record of every sample, by problem and number in order of appearance.
    """

    def __init__(self, path: Path, settings: dict[str, Any], file: IO[bytes]) -> None:
        self.path, self.settings, self._file = path, settings, file
        self.samples: dict[tuple[str, int], Sample] = {}
        file.seek(0)
        contents = file.read()
        complete = contents.rfind(b"\n") + 1
        file.truncate(complete)  # a line that was never completed
        for line, text in enumerate(contents[:complete].split(b"\n")[:-1], 1):
            try:
                self._remember(Sample(**json.loads(text)))
            except (ValueError, TypeError) as error:
                name = path / SAMPLES
                raise ReasoningError(f"{name}, line {line} is no sample ({error}); fix: delete that line") from error

    def _remember(self, sample: Sample) -> None:
        self.samples[sample.problem, sample.sample] = sample

    def add(self, sample: Sample) -> None:
        """Append one sample; it is in the file when this returns."""
        self._file.write(json.dumps(asdict(sample)).encode() + b"\n")
        self._file.flush()
        self._remember(sample)


@contextmanager
def run_folder(path: Path, settings: dict[str, Any]) -> Iterator[RunFolder]:
    """The folder of a run with these settings, new or taken up again.

    Raises:
        ReasoningError: the folder holds a run with other settings, or is in use.
    """
    path.mkdir(parents=True, exist_ok=True)
    with (path / SAMPLES).open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ReasoningError(f"another run is writing to --out {path}; fix: name another folder") from error
        if not file.tell() and not (path / SETTINGS).exists():
            fresh = path / "settings.part"
            fresh.write_text(json.dumps(settings, indent=1) + "\n")
            fresh.rename(path / SETTINGS)
        _check_settings(path / SETTINGS, settings)
        yield RunFolder(path, settings, file)


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    recorded = json.loads(path.read_text())
    for key, now in settings.items():
        if recorded.get(key) != now:
            before, after = json.dumps(recorded.get(key)), json.dumps(now)
            fix = "flags, --data and a server that give what is recorded, or another --out"
            raise ReasoningError(f"{path} records {key}={before}, this run has {after}; fix: {fix}")


# Figures


def figures(samples: Collection[Sample], kind: str) -> dict[str, Any]:
    """Accuracy, lengths and speed of all samples; errors are counted and left out of everything else.

    ``accuracy`` is the mean over problems of the share of their samples that are right, which also is the unbiased
    estimate of pass@1; its standard error is that of a mean over problems. Values without a sample are None.
    """
    graded = [sample for sample in samples if sample.error is None]
    problems: dict[str, list[Sample]] = defaultdict(list)
    for sample in graded:
        problems[sample.problem].append(sample)
    shares = [statistics.fmean(bool(s.correct) for s in group) for group in problems.values()]
    lengths = [sample.completion_tokens or 0 for sample in graded]
    busy = busy_seconds(samples)
    accuracy = statistics.fmean(shares) if shares else None
    several = any(len(group) > 1 for group in problems.values())
    return {
        "problems": len(problems),
        "samples": len(graded),
        "errors": len(samples) - len(graded),
        "accuracy": accuracy,
        "accuracy_standard_error": statistics.stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else None,
        "pass_at_1": accuracy,
        "majority_vote": statistics.fmean(voted(g, kind) for g in problems.values()) if several else None,
        "without_answer": sum(sample.extracted is None for sample in graded),
        "mean_tokens": statistics.fmean(lengths) if lengths else None,
        "median_tokens": statistics.median(lengths) if lengths else None,
        "max_tokens": max(lengths, default=None),
        "at_maximum_length": statistics.fmean(s.finish_reason == "length" for s in graded) if graded else None,
        "output_tokens": sum(lengths),
        "seconds": busy,
        "tokens_per_second": sum(lengths) / busy if busy else None,
    }


def voted(samples: Sequence[Sample], kind: str) -> bool:
    """Whether the most frequent answer of one problem is right; of equally frequent ones the lowest sample's counts."""
    in_order = sorted(samples, key=lambda sample: sample.sample)
    answers = [sample.extracted for sample in in_order if sample.extracted is not None]
    return is_correct(majority(answers, kind), in_order[0].expected, kind)


def busy_seconds(samples: Collection[Sample]) -> float:
    """Wall time in which at least one request was being answered, over all sittings of a run."""
    total, until = 0.0, -math.inf
    for start, end in sorted((sample.started, sample.started + sample.seconds) for sample in samples):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


_ROWS = {
    "problems": ("problems", "{:,}"),
    "samples graded": ("samples", "{:,}"),
    "accuracy (mean over problems) = pass@1": ("accuracy", "{:.1%}"),
    "majority vote": ("majority_vote", "{:.1%}"),
    "without an answer": ("without_answer", "{:,}"),
    "generated tokens, mean": ("mean_tokens", "{:,.1f}"),
    "generated tokens, median": ("median_tokens", "{:,.1f}"),
    "generated tokens, most": ("max_tokens", "{:,}"),
    "cut at the maximum length": ("at_maximum_length", "{:.1%}"),
    "output tokens/s": ("tokens_per_second", "{:,.1f}"),
    "errors (not graded)": ("errors", "{:,}"),
}


def figure_table(found: Mapping[str, Any], title: str) -> Table:
    """The figures for a reader."""
    table = Table("figure", title=title)
    table.add_column("value", justify="right")
    for label, (name, form) in _ROWS.items():
        error = found.get(f"{name}_standard_error")
        shown = "-" if found[name] is None else form.format(found[name])
        table.add_row(label, shown if error is None else f"{shown} ± {form.format(error)}")
    return table
