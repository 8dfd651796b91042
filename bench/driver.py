"""What every bench does around its measurement: arguments, files of results, the table at the end."""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lim_sglang.tools.servers.access import without_keys

RESULTS = Path("bench/results")
Row = dict[str, Any]
Parser = argparse.ArgumentParser


def parser(description: str | None, kind: type[Parser] = Parser) -> Parser:
    """A parser whose help shows a module's docstring as it is written."""
    prog = f"python {_program()}" if _program().startswith("-m ") else None
    return kind(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_out(to: Parser, holds: str = "the results") -> None:
    """Add ``--out``, the folder that a bench writes into."""
    to.add_argument("--out", type=Path, default=Path("runs"), help=f"folder of {holds} (runs)")


def require_gpu(parser: Parser) -> None:
    """End a bench of kernels with one line where it cannot run."""
    import torch

    if not torch.cuda.is_available():
        parser.error("it times kernels: run it on a machine with an NVIDIA GPU")
    if find_spec("flashinfer") is None:
        parser.error("it compares with FlashInfer, which is not installed; fix: pip install flashinfer-python")


def results_folder(description: str | None) -> tuple[Parser, Path]:
    """The command line of what reads results: its parser, for errors, and ``--results``."""
    reads = parser(description)
    reads.add_argument("--results", type=Path, default=RESULTS, help=f"folder of the results ({RESULTS})")
    return reads, reads.parse_args().results


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Write a CSV file, and its folder; a row may lack columns."""
    with row_writer(path, columns) as add:
        for row in rows:
            add(row)


@contextmanager
def row_writer(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Row], None]]:
    """A new CSV file that takes rows one by one and holds each of them at once, however the run ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()

        def add(row: Row) -> None:
            writer.writerow(row)
            file.flush()

        yield add


def write_json(path: Path, **content: Any) -> None:
    """Write a JSON file, and its folder: ``about`` this run, if the content does not say so, and the content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {} if "about" in content else {"about": about()}
    path.write_text(json.dumps(facts | content, indent=1) + "\n")


def print_rows(rows: Iterable[Row], columns: Sequence[str]) -> None:
    """A plain table, cells to the right."""
    for row in [dict(zip(columns, columns, strict=True)), *rows]:
        print("  ".join(f"{row.get(name, '')!s:>{max(8, len(name))}}" for name in columns))


def pairs(row: Row) -> str:
    """A row in one line, as in ``batch=8  context=32000``."""
    return "  ".join(f"{name}={value}" for name, value in row.items())


def markdown(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; its last line ends."""
    lines = [f"| {' | '.join(headings)} |".replace("|  |", "| |"), "|" + "---|" * len(headings)]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def exit_on_problems(rows: Iterable[Row]) -> None:
    """Exit with a line where a row has a problem in place of its speed."""
    if problems := sorted({row["speedup"] for row in rows if isinstance(row["speedup"], str)}):
        sys.exit(f"error: {' and '.join(problems)}: those rows tell no speed")


def about() -> dict[str, str]:
    """Versions, commit and command of this run; a package that is not installed is left out."""
    import torch

    packages = {}
    for name in ("torch", "triton", "sglang", "flashinfer-python", "transformers"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        **packages,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "commit": os.environ.get("LIM_COMMIT") or _commit() or "unknown",
        "command": _command(),
    }


def _program() -> str:
    """What runs, as Python is told from the root of this file's checkout: ``-m`` and a module, or a path elsewhere."""
    path, root = Path(sys.argv[0]).resolve(), Path(__file__).resolve().parents[1]
    if not path.is_relative_to(root / "bench"):
        return sys.argv[0]
    return "-m " + ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__main__")


def _command() -> str:
    """For a shell, after what lim reads of the environment; without keys."""
    read = {name: value for name, value in os.environ.items() if name.startswith("SGLANG_LIM_")}
    settings = [f"{name}={shlex.quote(value)} " for name, value in sorted(read.items())]
    return f"{''.join(settings)}python {_program()} {shlex.join(without_keys(sys.argv[1:]))}".rstrip()


def _commit() -> str:
    """The commit of this file's checkout; empty where there is none, or no git."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--verify", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
