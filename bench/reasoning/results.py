"""One run's folder, which grows sample by sample and can be taken up again, and the figures made of it."""

from __future__ import annotations

import fcntl
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.reasoning.data import ReasoningError
from bench.reasoning.grade import is_correct, majority

SETTINGS, SAMPLES, SUMMARY = "settings.json", "samples.jsonl", "summary.json"
# What a user sets on the server, not by a flag of the benchmark.
_OF_SERVER = ("model", "attention_backend", "decode_attention_backend", "lim")


@dataclass(frozen=True)
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
    correct: bool | None
    extracted: str | None
    expected: str
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str | None
    started: float
    seconds: float
    text: str
    error: str | None = None


class RunFolder:
    """``settings.json`` and ``samples.jsonl``, held by one process at a time.

    Raises:
        ReasoningError: the folder cannot be used, holds a run with other settings, or is in use.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, dict(settings)
        self._samples: dict[tuple[str, int], Sample] = {}

    def __enter__(self) -> RunFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._file = (self.path / SAMPLES).open("a+b")
        except OSError as error:
            raise ReasoningError(f"--out {self.path} cannot be used: {error}; fix: name another folder") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._check_settings()
            self._read_samples()
        except BlockingIOError as error:
            self._file.close()
            raise ReasoningError(f"another run is writing to --out {self.path}; fix: name another folder") from error
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _check_settings(self) -> None:
        path = self.path / SETTINGS
        if not path.exists():
            if self._file.tell():
                raise ReasoningError(f"{self.path} holds {SAMPLES} but no {SETTINGS}; fix: name another --out")
            fresh = path.with_suffix(".part")
            fresh.write_text(json.dumps(self.settings, indent=1) + "\n")
            fresh.rename(path)
            return
        try:
            recorded = json.loads(path.read_text())
            differing = [key for key, value in self.settings.items() if recorded.get(key) != value]
        except (ValueError, AttributeError) as error:
            raise ReasoningError(f"{path} cannot be read: {error}; fix: name another --out") from error
        if differing:
            raise ReasoningError(_refusal(path, differing[0], recorded.get(differing[0]), self.settings[differing[0]]))

    def _read_samples(self) -> None:
        """Take in what is finished; the end of a line that was never completed is cut off."""
        self._file.seek(0)
        contents = self._file.read()
        complete = contents.rfind(b"\n") + 1
        self._file.truncate(complete)
        for line, text in enumerate(contents[:complete].split(b"\n")[:-1], 1):
            try:
                self._remember(Sample(**json.loads(text)))
            except (ValueError, TypeError) as error:
                name = self.path / SAMPLES
                raise ReasoningError(f"{name}, line {line} is no sample ({error}); fix: delete that line") from error

    def _remember(self, sample: Sample) -> None:
        self._samples[sample.problem, sample.sample] = sample

    def add(self, sample: Sample) -> None:
        """Append one sample; it is in the file when this returns."""
        self._file.write(json.dumps(asdict(sample)).encode() + b"\n")
        self._file.flush()
        self._remember(sample)

    def has(self, problem: str, sample: int) -> bool:
        """Whether that sample is there and not an error."""
        found = self._samples.get((problem, sample))
        return found is not None and found.error is None

    def samples(self) -> list[Sample]:
        """The latest record of every sample, by problem in order of appearance."""
        return list(self._samples.values())


def _refusal(path: Path, key: str, recorded: Any, now: Any) -> str:
    if key == "problems_sha256":
        return f"{path} records {key} {recorded}, these problems have {now}; fix: the same --data, or another --out"
    before, after = json.dumps(recorded), json.dumps(now)
    if key in _OF_SERVER:
        fix = "a server with the recorded value"
        return f"{path} records {key}={before}, this server has {after}; fix: {fix}, or another --out"
    flag = "the --data and --kind of that run" if key == "kind" else f"--{key.replace('_', '-')} {recorded}"
    return f"{path} records {key}={before}, this run has {after}; fix: {flag}, or another --out"


# Figures


def figures(samples: Sequence[Sample], kind: str) -> dict[str, Any]:
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


def busy_seconds(samples: Sequence[Sample]) -> float:
    """Wall time in which at least one request was being answered, over all sittings of a run."""
    total, until = 0.0, -math.inf
    for start, end in sorted((sample.started, sample.started + sample.seconds) for sample in samples):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def figure_table(found: Mapping[str, Any], title: str) -> Table:
    """The figures for a reader."""
    table = Table("figure", title=title)
    table.add_column("value", justify="right")
    error = found["accuracy_standard_error"]
    rows = {
        "problems": f"{found['problems']:,}",
        "samples graded": f"{found['samples']:,}",
        "accuracy (mean over problems) = pass@1": _show(found["accuracy"], "{:.1%}")
        + ("" if error is None else f" ± {error:.1%}"),
        "majority vote": _show(found["majority_vote"], "{:.1%}"),
        "without an answer": f"{found['without_answer']:,}",
        "generated tokens, mean": _show(found["mean_tokens"], "{:,.1f}"),
        "generated tokens, median": _show(found["median_tokens"], "{:,.1f}"),
        "generated tokens, most": _show(found["max_tokens"], "{:,}"),
        "cut at the maximum length": _show(found["at_maximum_length"], "{:.1%}"),
        "output tokens/s": _show(found["tokens_per_second"], "{:,.1f}"),
        "errors (not graded)": f"{found['errors']:,}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _show(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)
