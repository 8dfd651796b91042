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
        self.path, self.columns, self.keys = path, list(columns), keys
        self._seen: set[tuple[str, ...]] = set()

    def __enter__(self) -> Table:
        text = self.path.read_text() if self.path.exists() else ""
        rows = list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))  # a last line may be cut off
        if rows and rows[0] != self.columns:
            sys.exit(f"fidelity: error: {self.path} has other columns; move it away or name another --out")
        complete = rows[1:]
        self._seen = {tuple(row[: self.keys]) for row in complete}
        self._file = self.path.open("w", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerows([self.columns, *complete])
        self._file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def has(self, key: Sequence[Any]) -> bool:
        return tuple(map(str, key)) in self._seen

    def add(self, key: Sequence[Any], values: dict[str, float]) -> None:
        self._writer.writerow([*key, *(f"{values[name]:.6g}" for name in self.columns[self.keys :])])
        self._file.flush()
        self._seen.add(tuple(map(str, key)))


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Versions, commit and command of this run, and those of the runs that it goes on from."""
    earlier = json.loads(path.read_text()) if path.exists() else {}
    runs = [*earlier.get("earlier", []), earlier["about"]] if earlier else []
    driver.write_json(path, **facts, earlier=runs)
