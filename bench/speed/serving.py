"""SGLang's own serving benchmark against a dense server and a lim server, at several request rates.

    python -m bench.speed.serving --launch                                     both servers in turn, on this machine
    python -m bench.speed.serving --server http://127.0.0.1:30000 --dense-server http://127.0.0.1:30001

Two workloads: ``random`` (random token ids, nothing shared) and ``shared-prefix`` (groups of requests behind one long
prefix each, which the radix cache holds). The client is ``sglang.bench_serving``; the cache is flushed before each of
its runs. Writes ``serving.csv``: output tokens per second, time to first token, latency between tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Column, Table

from bench import driver
from lim_sglang.errors import exit_with, one_line
from lim_sglang.tools.common import positive
from lim_sglang.tools.servers.access import VARIABLE, add_key_argument, check_access, headers, key_of
from lim_sglang.tools.servers.local import BENCH_SIZE, BUDGETS, DENSE, launched
from lim_sglang.tools.servers.state import LimStateError, NoLimError, lim_state

COLUMNS = {
    "attention": "attention",
    "workload": "workload",
    "rate": "requests/s",
    "completed": "completed",
    "output_throughput": "output tokens/s",
    "mean_ttft_ms": "TTFT, mean ms",
    "p99_ttft_ms": "p99",
    "mean_itl_ms": "ITL, mean ms",
    "p99_itl_ms": "p99",
}
RANDOM, SHARED = "random", "shared-prefix"
MEASURED = tuple(COLUMNS)[3:]
Row = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """What one run of the client sends, as its options; ``size`` requests."""

    name: str
    size: int
    options: tuple[str, ...]


class ServingError(RuntimeError):
    """The comparison cannot go on; the message is one line with the fix."""


def main() -> None:
    args = parse()
    note = Console(stderr=True, highlight=False)
    runs = list(product([workload for workload in workloads(args) if workload.name in args.workloads], args.rates))
    rows: list[Row] = []
    try:
        if find_spec("datasets") is None:  # which serving does not need
            raise ServingError("sglang.bench_serving needs the package datasets; fix: pip install datasets")
        driver.write_json(args.out / "serving.json")
        for attention in (DENSE, "lim"):
            with server(attention, args, note) as (url, key):
                check_flush(url, key)
                for workload, rate in runs:
                    with note.status(f"{attention}: {workload.name} at {rate} requests/s"):
                        measured = run_client(url, workload, rate, args, key)
                    rows.append({"attention": attention, "workload": workload.name, "rate": rate} | measured)
                    driver.write_rows(args.out / "serving.csv", list(COLUMNS), rows)  # what is measured so far
    except (RuntimeError, httpx.HTTPError) as error:
        exit_with(str(error))
    except KeyboardInterrupt:
        exit_with("interrupted; nothing is left running", code=130)
    show(rows)


def parse() -> argparse.Namespace:
    parser = driver.parser(__doc__)
    flag = parser.add_argument
    flag("--launch", action="store_true", help="serve with dense attention, then with lim")
    flag("--server", help="URL of a running lim server")
    flag("--dense-server", help="URL of a running dense server")
    add_key_argument(parser)
    flag("--model", help="of --launch: folder or name of a Hugging Face model (the embedded one)")
    flag("--budget", type=positive, help=f"lim's budget of --launch ({BUDGETS})")
    flag("--server-arg", action="append", default=[], metavar="'--OPTION VALUE'", help="more options of --launch")
    flag("--tokenizer", help="of the client, where the server's model has none")
    flag("--workloads", nargs="+", choices=[RANDOM, SHARED], default=[RANDOM, SHARED], help="which to send (both)")
    flag("--rates", nargs="+", type=rate_of, default=["1", "2", "inf"], help="requests per second (1 2 inf)")
    flag("--requests", type=positive, default=16, help="requests per run of the workload random (16)")
    flag("--input", type=positive, default=1024, help="tokens of a prompt (1024)")
    flag("--output", type=positive, default=64, help="tokens generated per request (64)")
    flag("--groups", type=positive, default=2, help="prefixes of the workload shared-prefix (2)")
    flag("--timeout", type=float, default=3600, help="seconds that one run of the client may take (3600)")
    driver.add_out(parser)
    args = parser.parse_args()
    servers = [url for url in (args.server, args.dense_server) if url]
    if len(servers) != (0 if args.launch else 2):
        parser.error("either --launch, or both --server and --dense-server")
    if not args.launch and (args.model or args.budget or args.server_arg):
        parser.error("--model, --budget and --server-arg are for --launch; running servers have their own")
    return args


def rate_of(text: str) -> str:
    """A converter of ``--rates``; the client takes it as text."""
    with suppress(ValueError):
        if text == "inf" or 0 < float(text) < float("inf"):
            return text
    raise argparse.ArgumentTypeError(f"{text}: expected numbers above 0, or inf; for example --rates 1 2 inf")


def workloads(args: argparse.Namespace) -> list[Workload]:
    """The same work for both servers: the client draws it from its seed."""
    random_ids = (
        *("--dataset-name", "random-ids", "--num-prompts", str(args.requests), "--random-range-ratio", "1"),
        *("--random-input-len", str(args.input), "--random-output-len", str(args.output)),
    )
    per_group = max(1, args.requests // args.groups)
    shared = (
        *("--dataset-name", "generated-shared-prefix", "--gsp-num-groups", str(args.groups)),
        *("--gsp-prompts-per-group", str(per_group), "--gsp-system-prompt-len", str(args.input)),
        *("--gsp-question-len", "64", "--gsp-output-len", str(args.output)),
    )
    return [Workload(RANDOM, args.requests, random_ids), Workload(SHARED, args.groups * per_group, shared)]


@contextmanager
def server(attention: str, args: argparse.Namespace, note: Console) -> Iterator[tuple[str, str | None]]:
    """URL and key of a server that runs, or of one that is started and ends with the block."""
    key = key_of(args)
    if not args.launch:
        url = (args.server if attention == "lim" else args.dense_server).rstrip("/")
        if serves_lim(url, key) != (attention == "lim"):
            raise ServingError(f"{url} does not serve with {attention} attention; fix: name another server")
        yield url, key
        return
    log = args.out / f"serving-{attention}.log"
    options = {"budget": args.budget, "given": args.server_arg}
    with launched(attention, args.model, size=BENCH_SIZE, log=log, note=note, lost=ServingError, **options) as process:
        yield process.url, process.key or key


def serves_lim(url: str, key: str | None = None) -> bool:
    """Whether the server at ``url`` decodes with lim."""
    try:
        lim_state(url, timeout=60, key=key)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ServingError(f"no SGLang server answers at {url}: {one_line(str(error))}; fix: start it") from error
    except NoLimError:
        return False
    except LimStateError as error:
        raise ServingError(f"{url}: {error}") from error
    return True


def check_flush(url: str, key: str | None) -> None:
    """Whether the client will be allowed to flush the cache: SGLang's of 0.5.16 goes on with a full one if it is not.

    Raises:
        ServingError: the server keeps that for another key.
    """
    answer = httpx.post(f"{url}/flush_cache", headers=headers(key), timeout=60, trust_env=False)
    if answer.status_code in (401, 403):
        raise ServingError(
            f"{url} does not let this client flush its cache (HTTP {answer.status_code}): it has an --admin-api-key; "
            f"fix: serve without that, or, if it has no other key, give that one by --api-key or {VARIABLE}"
        )


def run_client(url: str, workload: Workload, rate: str, args: argparse.Namespace, key: str | None = None) -> Row:
    """One run of ``sglang.bench_serving``, which looks for the key in the environment; its figures."""
    env = os.environ | ({VARIABLE: key} if key else {})
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.jsonl"
        command = [sys.executable, "-m", "sglang.bench_serving", "--backend", "sglang", "--base-url", url]
        command += ["--request-rate", rate, "--seed", "1", "--flush-cache", "--disable-tqdm", *workload.options]
        command += ["--output-file", str(result), *(["--tokenizer", args.tokenizer] if args.tokenizer else [])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=args.timeout, env=env, check=False)
        except subprocess.TimeoutExpired as error:
            raise ServingError(f"the client took over {args.timeout:g} s; fix: a larger --timeout") from error
        if done.returncode or not result.exists():
            raise ServingError(f"{shlex.join(command[1:5])} failed at {url}: {last_words(url, done.stderr, key)}")
        found = json.loads(result.read_text().splitlines()[-1])
    if found["completed"] != workload.size:
        raise ServingError(f"{url} completed {found['completed']} of {workload.size} requests; fix: see its log")
    return {name: round(found[name], 2) for name in MEASURED}


def last_words(url: str, stderr: str, key: str | None = None) -> str:
    """Whether a server answers at all, else what the client said last."""
    try:
        answer = httpx.get(f"{url}/v1/models", headers=headers(key), timeout=30, trust_env=False)
        check_access(answer, url, key).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"no server answers there ({one_line(str(error))}); fix: start it, or correct the URL"
    return one_line(next((line for line in reversed(stderr.splitlines()) if line.strip()), "no reason given"))


def show(rows: Sequence[Row]) -> None:
    table = Table(*(Column(heading, justify="right") for heading in COLUMNS.values()))
    for row in rows:
        table.add_row(*(str(row[name]) for name in COLUMNS))
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else 120
    console.print(table)


if __name__ == "__main__":
    main()
