"""A reasoning benchmark of a running SGLang server, dense or lim: accuracy, generation length, tokens per second.

    python -m bench.reasoning --server http://127.0.0.1:30000 --data aime24.jsonl --kind aime --samples 8 --out RUN
    python -m bench.reasoning --launch --out RUN          the embedded model with lim, on a built-in arithmetic set

The same command with the same --out goes on from what is finished: samples that are there are not asked for again,
failed ones are. Requests that fail are repeated twice, then recorded as errors and not graded. RUN holds
``settings.json``, ``samples.jsonl`` (one graded answer per line) and, at the end, ``summary.json``.

Data files are the user's own, as published: JSONL in UTF-8 with one object per line, or CSV with a header. Case makes
no difference to keys, other keys are ignored, "id" may be left out:

    --kind aime      {"id": "2024-I-1", "problem": "...", "answer": 204}     a whole number from 0 to 999; "073" too,
                     "204.0" and "336^\\circ"; "question" for "problem"; a "solution" with its answer in \\boxed{}
    --kind math500   {"unique_id": "test/7", "problem": "...", "answer": "\\\\frac{3}{4}"}     likewise
    --kind gpqa      {"Record ID": "q1", "Question": "...", "Correct Answer": "...", "Incorrect Answer 1": "...", ...}
                     or "choices", a list of four, with "answer", the letter or the index from 0 of the right one;
                     choices are shown in an order drawn by --seed

Answers of math500 are graded by math-verify (pip install 'lim-sglang[bench]'), each in 5 seconds of work: what takes
longer counts as wrong, and a line says so. Those of aime are one number, those of gpqa one letter and its label.

The same tasks by lm-evaluation-harness (0.4.13), with its own prompts and grading, greedily; MODEL is what the server's
/v1/models calls it, and a key is taken from OPENAI_API_KEY:

    pip install 'lm-eval[api,math]==0.4.13'
    lm_eval --model local-chat-completions --tasks aime24,minerva_math500,gpqa_diamond_cot_zeroshot \\
        --model_args model=MODEL,base_url=http://127.0.0.1:30000/v1/chat/completions,num_concurrent=16,timeout=7200 \\
        --apply_chat_template --gen_kwargs max_gen_toks=32768 --output_path runs/lm_eval

Every sample has a seed of its own, made of --seed, problem and sample number, and sent as OpenAI's ``seed``. SGLang
draws with it only under --enable-deterministic-inference, which lim refuses; elsewhere samples differ from run to run.
Tokens per second are output tokens over the time in which at least one request was being answered. Tokens read by
layer role are the server's counters, so they include whatever else it served in the meantime.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from bench import driver
from bench.reasoning.algebra import check_installed
from bench.reasoning.data import BUILT_IN, FILE_KINDS, Problem, ReasoningError, arithmetic, digest, load
from bench.reasoning.requests import Server, ServerLost, ask_all, ask_server
from bench.reasoning.results import SUMMARY, RunFolder, Sample, figure_table, figures, run_folder
from lim_sglang.errors import exit_with
from lim_sglang.tools.common import positive
from lim_sglang.tools.demo.report import role_rows, role_table
from lim_sglang.tools.servers.access import add_key_argument, key_of
from lim_sglang.tools.servers.local import BENCH_SIZE, EMBEDDED_BUDGET, Size, launched
from lim_sglang.tools.servers.state import counted_since

BUILT_IN_PROBLEMS = 40
FILE_MAX_TOKENS, BUILT_IN_MAX_TOKENS = 32768, 256


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    for name in ("httpx", "openai"):  # else a line per request where a program logs
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        if args.kind == "math500":
            check_installed()
        if args.data is None:
            problems = arithmetic(args.problems or BUILT_IN_PROBLEMS, args.seed)
        else:
            problems = load(args.data, args.kind, args.seed)[: args.problems]
        key = key_of(args)
        if args.server:
            run(args, args.server, key, problems)
            return
        size, log = Size(BENCH_SIZE.tokens, args.concurrency), args.out / "server.log"
        note = Console(stderr=True, highlight=False)
        options = {"budget": args.budget, "given": args.server_arg, "size": size, "lost": ServerLost}
        with launched(args.launch_backend, None, log=log, note=note, **options) as server:
            run(args, server.url, server.key or key, problems)
    except KeyboardInterrupt:
        exit_with(f"interrupted; what is finished is in {args.out}, the same command goes on from there", code=130)
    except RuntimeError as error:
        exit_with(str(error))
    except OSError as error:
        exit_with(f"{error}; fix: make room or name another --out, then run the same command again")


def run(args: argparse.Namespace, url: str, key: str | None, problems: list[Problem]) -> None:
    """Ask for all samples that are not there yet, then write and print the summary."""
    server = ask_server(url, key)
    if server.max_model_len is not None and args.max_tokens >= server.max_model_len:
        raise ReasoningError(
            f"--max-tokens {args.max_tokens} leaves no room for a prompt: {server.model} has a context of "
            f"{server.max_model_len} tokens; fix: a smaller --max-tokens"
        )
    settings = {
        **{name: getattr(args, name) for name in ("kind", "samples", "temperature", "top_p", "max_tokens", "seed")},
        "problems": len(problems),
        "problems_sha256": digest(problems),
        **server.settings(),
    }
    with run_folder(args.out, settings) as folder:
        ask_missing(args, server, folder, problems)
        summarize(args, server, folder)


def ask_missing(args: argparse.Namespace, server: Server, folder: RunFolder, problems: Sequence[Problem]) -> None:
    finished = {place for place, sample in folder.samples.items() if sample.error is None}
    pairs = [(problem, number) for problem in problems for number in range(args.samples)]
    todo = [(problem, number) for problem, number in pairs if (problem.id, number) not in finished]
    right = sum(bool(sample.correct) for sample in folder.samples.values())
    failed = 0
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(args.kind, total=len(pairs), completed=len(pairs) - len(todo))

        def keep(sample: Sample) -> None:
            nonlocal right, failed
            folder.add(sample)
            right += bool(sample.correct)
            failed += sample.error is not None
            progress.update(task, advance=1, description=f"{args.kind}: {right} right, {failed} failed")

        asyncio.run(ask_all(server, args, todo, keep))


def summarize(args: argparse.Namespace, server: Server, folder: RunFolder) -> None:
    """Print the tables and write ``summary.json``; exit with one line if nothing could be graded."""
    samples = folder.samples.values()
    found = figures(samples, args.kind)
    after = ask_server(server.url, server.key)
    counted = counted_since(server.lim, after.lim) if server.lim and after.lim else None
    driver.write_json(
        folder.path / SUMMARY,
        figures=found,
        settings=folder.settings,
        server={"url": server.url, "model": server.model, **server.info, "lim": after.lim},
        lim_tokens_this_sitting=counted,
    )
    out = Console(highlight=False)
    out.print(figure_table(found, f"{args.kind}, {server.info['attention_backend'] or 'unknown'} attention"))
    if counted and after.lim:
        out.print(f"\nTokens read by decode attention in this sitting: budget {after.lim['config']['budget']}")
        out.print(role_table(role_rows(after.lim["plan"], counted)))
    failed = next((sample.error for sample in samples if sample.error), None)
    if failed and not found["samples"]:
        raise ReasoningError(f"no sample could be graded; the first error is {failed}")
    if failed:
        note = f"{found['errors']} requests failed, the first with {failed}; the same command asks again"
        out.print(note, soft_wrap=True, markup=False)


# Flags


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = driver.parser(__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--server", type=server_url, help="URL of a running server: http://127.0.0.1:30000")
    where.add_argument("--launch", action="store_true", help="serve the embedded model for the time of the run")
    add_key_argument(parser)
    parser.add_argument("--launch-backend", metavar="NAME", help="--attention-backend of --launch (lim)")
    parser.add_argument("--budget", type=positive, help=f"lim budget of --launch ({EMBEDDED_BUDGET})")
    parser.add_argument("--server-arg", action="append", default=[], help="SGLang option of --launch: '--OPTION VALUE'")
    parser.add_argument("--data", type=Path, help="JSONL or CSV file; the built-in arithmetic set if left out")
    parser.add_argument("--kind", choices=FILE_KINDS, help="format of --data")
    parser.add_argument("--problems", type=positive, help=f"first problems only (all; {BUILT_IN_PROBLEMS} built-in)")
    parser.add_argument("--samples", type=positive, default=1, help="answers per problem (1)")
    parser.add_argument("--temperature", type=float, default=0.6, help="0 is greedy (0.6)")
    parser.add_argument("--top-p", type=float, default=0.95, help="above 0, up to 1 (0.95)")
    parser.add_argument(
        "--max-tokens", type=positive, help=f"longest answer ({FILE_MAX_TOKENS}; built-in set {BUILT_IN_MAX_TOKENS})"
    )
    parser.add_argument("--concurrency", type=positive, default=16, help="requests in flight (16)")
    parser.add_argument("--request-timeout", type=float, default=7200, help="seconds (7200)")
    parser.add_argument("--seed", type=int, default=0, help="of samples, order of choices, built-in problems (0)")
    parser.add_argument("--out", type=Path, required=True, help="folder of this run")
    args = parser.parse_args(argv)
    check_together(parser, args)
    return args


def check_together(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse flags that would be ignored, and fill in what depends on others."""
    if (args.data is None) != (args.kind is None):
        parser.error(f"--data and --kind belong together; kinds are {', '.join(FILE_KINDS)}")
    if not args.launch and (args.launch_backend or args.budget or args.server_arg):
        parser.error("--launch-backend, --budget and --server-arg are for --launch; a running server has its own")
    if not 0 <= args.temperature < math.inf:
        parser.error(f"--temperature {args.temperature:g} is not a number from 0")
    if not 0 < args.top_p <= 1:
        parser.error(f"--top-p {args.top_p:g} is not a number above 0 to 1")
    if not 0 < args.request_timeout < math.inf:
        parser.error(f"--request-timeout {args.request_timeout:g} is not a number above 0")
    args.launch_backend = args.launch_backend or "lim"
    if args.budget and args.launch_backend != "lim":
        parser.error(f"--budget is for lim; --launch-backend {args.launch_backend} has none")
    args.max_tokens = args.max_tokens or (BUILT_IN_MAX_TOKENS if args.data is None else FILE_MAX_TOKENS)
    args.kind = args.kind or BUILT_IN


def server_url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL such as http://127.0.0.1:30000")
    return text.rstrip("/").removesuffix("/v1")


if __name__ == "__main__":
    main()
