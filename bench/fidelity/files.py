"""The files that a measurement writes: rows as they are measured, and the circumstances of the runs."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import driver


class Table:
    """A CSV file that grows row by row and knows which rows it has; the first ``keys`` columns name a row."""

    def __init__(self, path: Path, columns: Sequence[str], keys: int) -> None:
        self.path, self.values = path, columns[keys:]
        text = path.read_text() if path.exists() else ""
        header, *rows = text[: text.rfind("\n") + 1].splitlines() or [",".join(columns)]  # a last line may be cut off
        if header != ",".join(columns):
            sys.exit(f"fidelity: error: {path} has other columns; move it away or name another --out")
        path.write_text("".join(f"{line}\n" for line in (header, *rows)))
        self._seen = {tuple(row[:keys]) for row in csv.reader(rows)}

    def has(self, key: Sequence[Any]) -> bool:
        return tuple(map(str, key)) in self._seen

    def add(self, key: Sequence[Any], values: dict[str, float]) -> None:
        with self.path.open("a", newline="") as file:
            row = [*key, *(f"{values[name]:.6g}" for name in self.values)]
            csv.writer(file, lineterminator="\n").writerow(row)
        self._seen.add(tuple(map(str, key)))


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Versions, commit and command of this run, and those of the runs that it goes on from."""
    earlier = json.loads(path.read_text()) if path.exists() else {}
    runs = [*earlier.get("earlier", []), earlier["about"]] if earlier else []
    driver.write_json(path, **facts, earlier=runs)
