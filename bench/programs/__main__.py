"""Run the frontend programs of this folder against SGLang servers and compare dense attention with lim.

    python -m bench.programs --launch                     both servers in turn, on this machine
    python -m bench.programs --server http://127.0.0.1:30000 --programs chain,documents
    python -m bench.programs --server http://127.0.0.1:30000 --dense-server http://127.0.0.1:30001

Every repeat is a problem of its own, made up from --seed, and the same for every server. A program that fails is
reported with its reason, the others go on, and the exit status is 1. The tokens that lim attends to are the server's
own counters: they include whatever else it serves, and are told per program only if programs run one at a time
(--concurrency 1). Agreement with dense attention is told at --temperature 0 only.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import driver
from bench.programs import results
from bench.programs.arms import Arm, arms, lim_state
from bench.programs.common import OneLineParser, Outcome, add_shared_arguments, execute, server_url, whole
from bench.programs.metering import ProgramError, cost
from lim_sglang.errors import exit_with
from lim_sglang.tools.servers.access import AccessError, without_keys
from lim_sglang.tools.servers.embedded_model import EmbeddedModelError
from lim_sglang.tools.servers.local import BUDGETS, DENSE
from lim_sglang.tools.servers.process import ServerError

PROGRAMS = {
    name: import_module(f"bench.programs.{name}")
    for name in ("chain", "self_consistency", "tree_of_thought", "tool_loop", "documents")
}
Place = tuple[str, str, int]  # program, attention, repeat


@dataclass
class Record:
    """What all arms came to so far."""

    rows: list[driver.Row] = field(default_factory=list)
    outcomes: dict[Place, Outcome] = field(default_factory=dict)
    servers: list[dict[str, Any]] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    note, record = Console(stderr=True, highlight=False), Record()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        with closing(arms(args, note)) as ready:  # closing stops a launched server before anything else is said
            for arm in ready:
                run_arm(arm, args, note, record)
        report(args, record)
    except KeyboardInterrupt:
        exit_with("interrupted; nothing is left running", code=130)
    except (ProgramError, ServerError, EmbeddedModelError, AccessError) as error:
        if record.rows:  # one server has done its part
            report(args, record)
        exit_with(str(error))
    except OSError as error:
        exit_with(f"--out {args.out} cannot be used: {error}; fix: make room or name another folder")
    if any(row["status"] == "failed" for row in record.rows):
        raise SystemExit(1)


def run_arm(arm: Arm, args: argparse.Namespace, note: Console, record: Record) -> None:
    """All programs on one server, in daemon threads, which a Ctrl-C ends."""
    places = [(name, arm.attention, repeat) for repeat in range(args.repeats) for name in args.programs]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    before = lim_state(arm.endpoint)
    with Progress(*columns, console=note) as progress, ThreadPool(min(args.concurrency, len(places))) as pool:
        rows = pool.imap_unordered(partial(run_job, arm, args, record), places)
        for row in progress.track(rows, len(places), description=arm.attention):
            record.rows.append(row)
            if row["status"] == "failed":
                said = f"{row['program']} failed on {arm.attention}: {row['reason']}"
                progress.print(said, soft_wrap=True, markup=False)
    record.servers.append({"attention": arm.attention, "url": arm.endpoint.base_url, **arm.endpoint.model_info})
    if before:
        after = state_or_none(arm)
        record.servers[-1] |= {"lim": after, **results.counted_between(before, after)}


def run_job(arm: Arm, args: argparse.Namespace, record: Record, place: Place) -> driver.Row:
    """One run of one program."""
    name, _, repeat = place
    settings = argparse.Namespace(**{**vars(args), "seed": args.seed + repeat})
    endpoint, dense = arm.endpoint.fresh(), None
    before = state_or_none(arm) if args.concurrency == 1 else None
    result: Outcome | str
    began = time.monotonic()
    try:
        result = record.outcomes[place] = execute(PROGRAMS[name], endpoint, settings)
    except ProgramError as error:
        result = arm.why_lost(str(error))
    spent = cost(endpoint.requests, time.monotonic() - began)
    counted = results.counted_between(before, state_or_none(arm) if before else None)
    if arm.attention != DENSE and args.temperature == 0:
        dense = record.outcomes.get((name, DENSE, repeat))
    return results.make_row(place, spent, counted, result, dense)


def state_or_none(arm: Arm) -> dict[str, Any] | None:
    """lim's state; None without lim, and from a server that no longer answers."""
    try:
        return lim_state(arm.endpoint)
    except ProgramError:
        return None


def report(args: argparse.Namespace, record: Record) -> None:
    """Write the files, then print the table."""
    record.rows.sort(key=lambda row: (list(PROGRAMS).index(row["program"]), row["attention"], row["repeat"]))
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    settings |= {"api_key": None, "server_arg": without_keys(args.server_arg)}
    named = [(dict(zip(results.PLACE, place, strict=True)), outcome) for place, outcome in record.outcomes.items()]
    outcomes = [place | vars(outcome) for place, outcome in named]
    files = args.out / "programs.csv", args.out / "programs.json"
    driver.write_rows(files[0], list(record.rows[0]), record.rows)
    driver.write_json(files[1], rows=record.rows, servers=record.servers, settings=settings, outcomes=outcomes)
    out = Console(highlight=False)
    out.width = out.width if out.is_terminal else 120
    out.print(results.table(record.rows))
    for server in record.servers:
        if server.get("attended_share") is not None:
            out.print(f"lim attended to {server['attended_share']:.1%} of what dense attention reads, all programs")
        if server.get("accepted_drafts") is not None:
            out.print(f"lossless: {server['accepted_drafts']:.2f} drafts accepted per round, all programs")
    out.print(f"written: {files[0]}, {files[1]}", soft_wrap=True)


# Flags


def program_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in PROGRAMS:
            raise argparse.ArgumentTypeError(f"{name!r} is no program; fix: some of {','.join(PROGRAMS)}")
    return list(dict.fromkeys(names))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = driver.parser(__doc__, OneLineParser)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--server", type=server_url, help="URL of a running server: http://127.0.0.1:30000")
    where.add_argument("--launch", action="store_true", help="serve with dense attention, then with lim")
    flag = parser.add_argument
    flag("--dense-server", type=server_url, metavar="URL", help="a running dense server, to compare --server with")
    flag("--lossless", action="store_true", help="of --launch: a third server, whose output is dense attention's")
    flag("--model", help="of --launch: folder or name of a Hugging Face model (the embedded one)")
    flag("--budget", type=whole(1, 2**31 - 1), help=f"lim budget of --launch ({BUDGETS})")
    more = "more SGLang options of --launch, in quotes; may be repeated (--lim-* goes to lim only)"
    flag("--server-arg", "--server-args", action="append", default=[], metavar="'--OPTION VALUE'", help=more)
    flag("--programs", type=program_names, default=list(PROGRAMS), help=f"some of {','.join(PROGRAMS)} (all)")
    flag("--concurrency", type=whole(1, 256), default=1, help="programs at a time (1)")
    flag("--repeats", type=whole(1, 10_000), default=1, help="problems per program (1)")
    driver.add_out(parser, "programs.csv and .json")
    add_shared_arguments(parser)
    for program in PROGRAMS.values():
        program.add_arguments(parser)
    args = parser.parse_args(argv)
    if not args.launch and (args.model or args.budget or args.server_arg or args.lossless):
        parser.error(
            "--model, --budget, --lossless and --server-arg are for --launch; fix: leave them out, a server has its own"
        )
    if args.launch and args.dense_server:
        parser.error("--dense-server is for --server; fix: leave it out, --launch starts a dense one")
    return args


if __name__ == "__main__":
    main()
