"""The outcomes of a soak, written as they come, and what they add up to."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.soak.client import Outcome
from bench.soak.replay import Replayed
from lim_sglang.tools.servers.state import rounds_since

EXAMPLES = 10


class Report:
    """Outcomes of a seed, a line each, written as they come; those of runs that were stopped are read first.

    Attributes:
        seconds: that the earlier runs took, all together.
        first: number of the first operation that is still to do.
    """

    def __init__(self, path: Path | None, seed: int, first: int = 0) -> None:
        self.path, self.seed = path, seed
        self.outcomes: list[Outcome] = []
        self.seconds, last = 0.0, 0.0
        self._began = time.monotonic()
        for line in path.read_text().splitlines() if path and path.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:  # a last line that was cut off
                continue
            if entry.pop("seed") != seed:
                continue
            at = entry.pop("at")
            self.seconds += at - last if at >= last else at
            last = at
            self.outcomes.append(Outcome(**entry))
        self.first = max((outcome.number + 1 for outcome in self.outcomes), default=first)

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if self.path:
            at = round(time.monotonic() - self._began, 1)
            with self.path.open("a") as file:
                file.write(json.dumps({"seed": self.seed, "at": at} | asdict(outcome)) + "\n")


def summary(
    outcomes: Sequence[Outcome], start: Mapping[str, Any], end: Mapping[str, Any], replayed: Replayed, **more: Any
) -> dict[str, Any]:
    """The figures; ``wrong`` names those that must be 0 and are not.

    Args:
        start, end: the server before and after, as of ``watch.state``.
        more: figures that are known: ``stuck``, requests that it still held long after the last client;
            ``leaked_tokens`` of the pool that no request holds and the cache cannot evict, after the traffic and the
            replays; ``healthy``, and others.
    """
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    aborts = Counter(outcome.verdict for outcome in outcomes if outcome.kind == "aborted")
    lost = [outcome for outcome in outcomes if outcome.verdict == "lost"]
    before, after = Counter(start["rss_mib"]), Counter(end["rss_mib"])
    growth = {name: after[name] - before[name] for name in before | after if after[name] != before[name]}
    has_drafts = all(one["lim"] and "lossless" in one["lim"]["counters"] for one in (start, end))
    found: dict[str, Any] = {
        "requests": len(outcomes),
        "answered": verdicts["answered"],
        "aborted": verdicts["gone"],
        "too_late": verdicts["late"],
        "bad_inputs": verdicts["refused"],
        "retracted": sum(outcome.retractions for outcome in outcomes),
        "lost": len(lost),
        **more,
        "replayed": replayed.asked,
        "equal_tokens": replayed.equal_tokens,
        "near_ties": replayed.near_ties,
        "differing": len(replayed.differing),
        "rss_growth_mib": sum(growth.values()),
        "rss_growth_by_process": growth,
        "gpu_growth_mib": end["gpu_mib"] - start["gpu_mib"],
        **(rounds_since(start["lim"], end["lim"]) if has_drafts else {}),
        "kinds": dict(Counter(outcome.kind for outcome in outcomes)),
        "examples": [f"{o.number} ({o.kind}, status {o.status}): {o.detail}" for o in lost[:EXAMPLES]]
        + [f"{number}: other tokens alone" for number in replayed.differing[:EXAMPLES]],
    }
    wrong = [name for name in ("lost", "stuck", "leaked_tokens", "differing") if found[name]]
    wrong += ["too_late"] if aborts["late"] > max(2, aborts["gone"]) else []  # the server does not heed them
    return found | {"wrong": wrong if found["healthy"] else [*wrong, "healthy"]}


def store(path: Path, attention: str, found: dict[str, Any]) -> None:
    """Write what was found beside what the file says of other attentions."""
    others = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(others | {attention: found}, indent=1) + "\n")
