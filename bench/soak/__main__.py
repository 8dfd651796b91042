"""Mixed traffic against a server for some minutes; afterwards nothing may be lost, stuck or leaked.

    python -m bench.soak --minutes 20 --out runs             lim, the embedded model on a CPU
    python -m bench.soak --minutes 20 --out runs --lossless  lim drafts, dense attention verifies
    python -m bench.soak --seed 7 --first 1234 --count 1     one operation again

Clients of random lengths, half of them behind shared prefixes, stream, ask for several answers, grammars and
log-probabilities, abort, vanish, and send what no server can take. The KV pool holds less than they ask for, so that
requests are retracted. At the end the server has to be idle and healthy, its pool empty once flushed, and the greedy
answers must be the same again, request by request, alone.

Outcomes are written as they come: a run with the same folder, seed and server goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench import driver
from bench.soak import adapter
from bench.soak.client import HELD, USED, left_after, perform
from bench.soak.replay import replay
from bench.soak.results import Report, store, summary
from bench.soak.traffic import Limits, Maker
from bench.soak.watch import memory_by_minute, settle, state
from lim_sglang.errors import exit_with
from lim_sglang.tools.common import positive
from lim_sglang.tools.servers.access import without_keys
from lim_sglang.tools.servers.embedded_model import ensure_model
from lim_sglang.tools.servers.local import DENSE, LIM, LOSSLESS, Size, find_device, launched
from lim_sglang.tools.servers.process import ServerError, ServerProcess

TIMEOUT = 900.0  # of a request: more than any takes on a busy machine
IDLE_SECONDS = 120.0
FREED_SECONDS = 15.0  # after the last request
ENDING_SECONDS = 15.0  # that a server may take to end once its clients have noticed
CONSERVATIVENESS = 0.2  # SGLang admits more than fits, and has to retract
NEAR_TIE = 0.25  # nats between two tokens that bfloat16 may swap


def main() -> None:
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    size, log = Size(tokens=args.pool, requests=args.running), args.out / f"soak-{args.attention}.log"
    rest: dict[str, Any] = {"size": size, "log": log, "note": Console(stderr=True, highlight=False)}
    options = server_options(args)
    try:
        with launched(
            args.attention, args.model, budget=args.budget, given=options, lost=httpx.HTTPError, **rest
        ) as server:
            failed = asyncio.run(soak(server, args))
    except ServerError as error:
        exit_with(str(error))
    sys.exit(1 if failed else 0)


def server_options(args: argparse.Namespace) -> list[str]:
    options = [
        f"--max-total-tokens {args.pool} --max-running-requests {args.running} --context-length {args.context}",
        f"--schedule-conservativeness {CONSERVATIVENESS}",
    ]
    if args.adapter:
        options.append(adapter.make_adapter(Path(args.model or ensure_model()), args.out / "adapter"))
    return [*options, *args.server_arg]


def parse() -> argparse.Namespace:
    parser = driver.parser(__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="of traffic, earlier runs included (20)")
    parser.add_argument("--attention", choices=(LIM, LOSSLESS, DENSE), default=LIM, help="what serves (lim)")
    parser.add_argument("--lossless", action="store_const", dest="attention", const=LOSSLESS, help="the lossless mode")
    parser.add_argument("--model", help="folder or name of a Hugging Face model (the embedded one)")
    parser.add_argument("--budget", type=positive, help="lim's, in tokens (256 for the embedded model)")
    parser.add_argument("--pool", type=positive, default=2500, help="tokens of the KV pool (2500)")
    parser.add_argument("--running", type=positive, default=12, help="requests that run at a time (12)")
    parser.add_argument("--clients", type=positive, default=16, help="at a time (16)")
    parser.add_argument("--context", type=positive, default=4000, help="tokens of a request, at most (4000)")
    parser.add_argument("--prompt", type=positive, default=1000, help="tokens of a prompt, at most (1000)")
    parser.add_argument("--output", type=positive, default=256, help="tokens of an answer, at most (256)")
    parser.add_argument("--adapter", action="store_true", help="a random LoRA adapter serves some requests (GPU only)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, help="number of the first operation, to see it again; no file is written")
    parser.add_argument("--count", type=positive, help="operations, in place of --minutes")
    parser.add_argument("--replays", type=positive, help="answers that are asked for again (all that can be compared)")
    parser.add_argument("--server-arg", action="append", default=[], help="more SGLang options, in quotes")
    driver.add_out(parser, "soak_cpu.json or soak_gpu.json")
    args = parser.parse_args()
    if args.prompt + args.output > min(args.pool, args.context):
        parser.error(
            f"--prompt {args.prompt} and --output {args.output} are more than --pool {args.pool} or --context "
            f"{args.context} holds; fix: shorter ones"
        )
    if not args.minutes > 0:
        parser.error(f"--minutes {args.minutes}: more than 0")
    return args


async def soak(server: ServerProcess, args: argparse.Namespace) -> bool:
    """Traffic, then the reckoning; whether anything is wrong."""
    maker = Maker(args.seed, Limits(args.prompt, args.output, args.context, adapter.NAME if args.adapter else ""))
    is_cpu, again = find_device().is_cpu, args.first is not None
    report = Report(None if again else args.out / f"soak_{args.attention}.jsonl", args.seed, args.first or 0)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=args.clients)
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT, limits=limits, trust_env=False) as client:
        await settle(client)
        start = await state(client, server)
        began = time.monotonic()
        async with memory_by_minute(server) as memory:
            await traffic(client, server, maker, report, args)
        seconds = report.seconds + time.monotonic() - began
        stuck = await left_after(client, IDLE_SECONDS, HELD)
        leaked = await left_after(client, FREED_SECONDS, USED)
        emptied = await settle(client)  # a replay must not find keys that the traffic wrote
        options = {"most": args.replays, "retracted": args.attention != LIM, "tolerance": 0.0 if is_cpu else NEAR_TIE}
        replayed = await replay(client, maker, report.outcomes, **options)
        leaked += await left_after(client, FREED_SECONDS, USED)
        emptied = await settle(client) and emptied
        end = await state(client, server)
        healthy = emptied and (await client.get("/health_generate")).status_code == 200
    figures = {"stuck": stuck, "leaked_tokens": leaked, "rss_mib_by_minute": memory, "seconds": round(seconds, 1)}
    found = summary(report.outcomes, start, end, replayed, **figures, healthy=healthy)
    if not again:
        settings = {key: str(value) for key, value in vars(args).items() if key != "out"}
        settings["server_arg"] = str(without_keys(args.server_arg))
        path = args.out / f"soak_{'cpu' if is_cpu else 'gpu'}.json"
        store(path, args.attention, found | {"settings": settings, "about": driver.about()})
    for line in (f"{key}: {value}" for key, value in found.items() if key not in ("kinds", "examples")):
        print(line)
    for example in found["examples"]:
        print(f"lost: {example}")
    return bool(found["wrong"])


async def traffic(
    client: httpx.AsyncClient, server: ServerProcess, maker: Maker, report: Report, args: argparse.Namespace
) -> None:
    """As many clients as asked for, each with one operation after the other, until the time is up.

    Raises:
        ServerError: the server has ended.
    """
    numbers, left = count(report.first), args.minutes * 60 - report.seconds
    deadline = time.monotonic() + left

    async def one_after_the_other(progress: Progress, task: Any) -> None:
        for number in numbers:
            done = number - report.first if args.count else max(0.0, left - (deadline - time.monotonic()))
            progress.update(task, completed=done, operations=len(report.outcomes))
            if (done >= args.count) if args.count else time.monotonic() > deadline:
                return
            outcome = await perform(client, maker.operation(number))
            report.add(outcome)
            if outcome.verdict == "lost" and outcome.status is None:
                await asyncio.to_thread(server.check_running, ENDING_SECONDS)

    columns = (TextColumn("soak"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[operations]} operations"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("soak", total=args.count or max(1.0, left), operations=0)
        await asyncio.gather(*(one_after_the_other(progress, task) for _ in range(args.clients)))


if __name__ == "__main__":
    main()
