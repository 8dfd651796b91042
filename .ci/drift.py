"""``make drift`` (``.ci/drift.py [OLDEST]``): the names of SGLang relied on here, in every release on the index.

Wheels from OLDEST (the oldest tested release) on are downloaded and read; nothing is installed or imported, and no GPU
is needed. Prints a line per release and a table of the names that some release lacks, with those that the newest no
longer has: they are about to go. A tested release that lacks one, or that could not be read, is exit code 1. Where the
index cannot be asked, a line says so, and the code is 0.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from packaging.version import Version  # one of SGLang's dependencies

from lim_sglang.host.host_check import check
from lim_sglang.host.names import HOST_NAMES, SERVER_ARGS_FIELDS
from lim_sglang.host.versions import TESTED_SGLANG

COUNT = len(HOST_NAMES) + len(SERVER_ARGS_FIELDS)
TESTED = TESTED_SGLANG["cpu"]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def releases(oldest: str) -> list[str]:
    """All on the index from ``oldest`` on, in order; empty where it cannot be asked."""
    command = [*PIP, "index", "versions", "sglang"]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120).stdout
    listed = re.search(r"^Available versions: (.*)$", said, re.MULTILINE)
    found = listed[1].split(", ") if listed else []
    return sorted((release for release in found if Version(release) >= Version(oldest)), key=Version)


def problems(release: str, folder: Path) -> dict[str, str] | None:
    """What is wrong with each name that this release lacks; None where its wheel cannot be had."""
    command = [*PIP, "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(folder), f"sglang=={release}"]
    subprocess.run(command, capture_output=True, check=False, timeout=600)
    wheel = next(folder.glob(f"sglang-{release}-*.whl"), None)
    if wheel is None:
        return None
    root = folder / release
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(root, [name for name in archive.namelist() if name.endswith(".py")])
    lacking = {verdict.host_name.path: verdict.problem for verdict in check(HOST_NAMES, root) if not verdict.ok}
    declared = options(root)
    return lacking | {f"ServerArgs.{name}": "no such option" for name in SERVER_ARGS_FIELDS if name not in declared}


def options(root: Path) -> set[str]:
    """The launch options that a release declares: newer ones assemble them from one namespace a file."""
    srt = root / "sglang" / "srt"
    files = [srt / "server_args.py", *(srt / "arg_groups" / "fields").glob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    return {n.target.id for n in nodes if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}


def report(found: dict[str, dict[str, str] | None]) -> list[str]:
    """The lines to print, of problems by release."""
    lines = []
    for release, lacking in found.items():
        tested = " (tested)" if release in TESTED else ""
        count = "no wheel could be had" if lacking is None else f"{COUNT - len(lacking)} of {COUNT} names"
        lines.append(f"drift: {release}{tested}: {count}")
    read = {release: lacking for release, lacking in found.items() if lacking is not None}
    paths = sorted({path for lacking in read.values() for path in lacking})
    if paths:
        lines += ["", "| name | " + " | ".join(read) + " |", "|---" * (1 + len(read)) + "|"]
        rows = {path: [lacking.get(path, "") for lacking in read.values()] for path in paths}
        lines += [f"| {path} | {' | '.join(cells)} |" for path, cells in rows.items()]
    newest = list(read)[-1:]
    going = [path for path in paths if newest and path in read[newest[0]]]
    lines += [f"drift: about to go, since {newest[0]} has it no longer: {path}" for path in going]
    return lines


def main(oldest: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        found = {release: problems(release, Path(folder)) for release in releases(oldest)}
    if not found:
        print("drift: the index could not be asked")
        return 0
    print("\n".join(report(found)))
    return 0 if all(found.get(release) == {} for release in TESTED) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else TESTED[0]))
