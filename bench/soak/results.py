"""The outcomes of a soak, written as they come, and what they add up to."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.soak.client import Outcome
from bench.soak.replay import Replayed
from lim_sglang.tools.servers.state import rounds_since

EXAMPLES = 10


@dataclass
class Report:
    """A line per outcome, after a line that says whose they are."""

    path: Path
    seed: int
    _began: float = field(default_factory=time.monotonic, init=False)

    def add(self, outcome: Outcome) -> None:
        with self.path.open("a") as file:
            at = round(time.monotonic() - self._began, 1)
            file.write(json.dumps({"seed": self.seed, "at": at} | asdict(outcome)) + "\n")


@dataclass(frozen=True)
class Earlier:
    """What a folder holds of the same seed.

    Attributes:
        seconds: that those runs took, all together.
    """

    outcomes: list[Outcome]
    seconds: float
    next_number: int


def earlier(path: Path, seed: int) -> Earlier:
    """Outcomes of runs that were stopped; a last line that was cut off is left out."""
    outcomes, seconds, last = [], 0.0, 0.0
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry.pop("seed") != seed:
            continue
        at = entry.pop("at")
        seconds += at - last if at >= last else at
        last = at
        outcomes.append(Outcome(**entry))
    return Earlier(outcomes, seconds, max((outcome.number + 1 for outcome in outcomes), default=0))


@dataclass(frozen=True)
class Settled:
    """The server before the traffic and after it.

    Attributes:
        start, end: as of ``watch.state``.
        stuck: requests that it still held long after the last client.
        leaked: tokens of the pool that no request holds and the cache cannot evict, after the traffic and the replays.
        rss_mib_by_minute: resident memory of its processes during the traffic.
    """

    start: dict[str, Any]
    end: dict[str, Any]
    stuck: int
    leaked: int
    replayed: Replayed
    healthy: bool
    seconds: float
    rss_mib_by_minute: Sequence[int] = ()

    @property
    def rss_growth(self) -> dict[str, int]:
        """MiB by role of process, without those that kept their size."""
        before, after = Counter(self.start["rss_mib"]), Counter(self.end["rss_mib"])
        return {name: after[name] - before[name] for name in before | after if after[name] != before[name]}

    @property
    def drafts(self) -> dict[str, int]:
        """The lossless mode's totals; none where another attention served."""
        states = self.start["lim"], self.end["lim"]
        has_totals = all(state and "lossless" in state["counters"] for state in states)
        return rounds_since(*states) if has_totals else {}


def summary(outcomes: Sequence[Outcome], settled: Settled) -> dict[str, Any]:
    """The figures; ``wrong`` names those that must be 0 and are not."""
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    aborts = Counter(outcome.verdict for outcome in outcomes if outcome.kind == "aborted")
    lost = [outcome for outcome in outcomes if outcome.verdict == "lost"]
    found: dict[str, Any] = {
        "requests": len(outcomes),
        "answered": verdicts["answered"],
        "aborted": verdicts["gone"],
        "too_late": verdicts["late"],
        "bad_inputs": verdicts["refused"],
        "retracted": sum(outcome.retractions for outcome in outcomes),
        "lost": len(lost),
        "stuck": settled.stuck,
        "leaked_tokens": settled.leaked,
        "replayed": settled.replayed.asked,
        "equal_tokens": settled.replayed.equal_tokens,
        "near_ties": settled.replayed.near_ties,
        "differing": len(settled.replayed.differing),
        "rss_growth_mib": sum(settled.rss_growth.values()),
        "rss_growth_by_process": settled.rss_growth,
        "gpu_growth_mib": settled.end["gpu_mib"] - settled.start["gpu_mib"],
        "rss_mib_by_minute": list(settled.rss_mib_by_minute),
        "seconds": settled.seconds,
        "healthy": settled.healthy,
        **settled.drafts,
        "kinds": dict(Counter(outcome.kind for outcome in outcomes)),
        "examples": [f"{o.number} ({o.kind}, status {o.status}): {o.detail}" for o in lost[:EXAMPLES]]
        + [f"{number}: other tokens alone" for number in settled.replayed.differing[:EXAMPLES]],
    }
    wrong = [name for name in ("lost", "stuck", "leaked_tokens", "differing") if found[name]]
    wrong += ["too_late"] if aborts["late"] > max(2, aborts["gone"]) else []  # the server does not heed them
    return found | {"wrong": wrong if settled.healthy else [*wrong, "healthy"]}


def store(path: Path, attention: str, found: dict[str, Any]) -> None:
    """Write what was found beside what the file says of other attentions."""
    others = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(others | {attention: found}, indent=1) + "\n")
