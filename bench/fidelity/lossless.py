"""The lossless mode's greedy tokens against dense attention's, from servers: every one must be equal.

    python -m bench.fidelity.lossless --out bench/results                      what bench/results holds
    python -m bench.fidelity.lossless --settings 256x6 --prompts 5 --tokens 32  a part of it

Prompts are real text of five kinds and ragged lengths. Dense attention answers each alone. The lossless mode answers
each alone, then all of them in batches of eight (which find the prompts in the radix cache), then a second turn behind
its own answer, whose tokens are cached as well; long prompts are prefilled in chunks. Float32, on a CPU, where equal
means equal; near-ties of a 16-bit dtype would tell two passes of other sizes apart, drafts or not.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from transformers import AutoTokenizer

from bench import driver
from bench.fidelity.texts import TEXTS, encode
from lim_sglang.errors import exit_with
from lim_sglang.tools.common import positive
from lim_sglang.tools.servers.embedded_model import ensure_model
from lim_sglang.tools.servers.local import DENSE, LOSSLESS, Size, launched
from lim_sglang.tools.servers.process import ServerError, ServerProcess

SETTINGS = ("128x3", "256x6", "512x8")
SHORTEST, LONGEST, BATCH = 1000, 6000, 8
QUESTION = "\nNow say in one sentence what the text above is about.\n"
TIMEOUT = 3600.0


@dataclass(frozen=True)
class Row:
    """One answer.

    Attributes:
        part: ``alone``, ``batch`` or ``second turn``.
        equal: tokens before the first that is not dense attention's; all of them if ``equal == tokens``.
        accepted: drafts per round, as the server says of this request.
    """

    text: str
    prompt_tokens: int
    budget: int
    drafts: int
    part: str
    cached_tokens: int
    tokens: int
    equal: int
    accepted: float


@dataclass(frozen=True)
class Prompt:
    text: str
    tokens: list[int]


def main() -> None:
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    note, rows = Console(stderr=True, highlight=False), []
    prompts, question = make_prompts(args.prompts)
    try:
        with served(DENSE, [], args, note) as server:
            first = [ask(server, prompt.tokens, args.tokens) for prompt in prompts]
            turns = [[*p.tokens, *answer["output_ids"], *question] for p, answer in zip(prompts, first, strict=True)]
            second = [ask(server, turn, args.tokens) for turn in turns]
        for budget, drafts in args.settings:
            options = [f"--lim-budget {budget}", f"--speculative-num-draft-tokens {drafts + 1}"]
            with served(LOSSLESS, options, args, note) as server:
                for part, expected, found in parts(server, prompts, turns, first, second, args.tokens):
                    rows += compare(prompts, budget, drafts, part, expected, found)
                    write(args.out, rows)
                    show(rows[-len(prompts) :])
    except ServerError as error:
        exit_with(str(error))
    if any(row.equal < row.tokens for row in rows):
        sys.exit("lossless: error: not dense attention's tokens; see lossless_tokens.csv")


def parse() -> argparse.Namespace:
    parser = driver.parser(__doc__)
    settings, shown = [*map(setting, SETTINGS)], " ".join(SETTINGS)
    parser.add_argument("--settings", type=setting, nargs="+", default=settings, help=f"budget x drafts ({shown})")
    parser.add_argument("--prompts", type=positive, default=24, help="of five kinds of text (24)")
    parser.add_argument("--tokens", type=positive, default=128, help="generated per answer (128)")
    driver.add_out(parser, "lossless_tokens.csv and .json")
    return parser.parse_args()


def setting(text: str) -> tuple[int, int]:
    """``256x6``: a budget, and the drafts of a round."""
    try:
        budget, drafts = map(positive, text.split("x"))
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise argparse.ArgumentTypeError(f"{text}: expected a budget and drafts, for example 256x6") from error
    return budget, drafts


def make_prompts(count: int) -> tuple[list[Prompt], list[int]]:
    """Prompts of ragged lengths, each from another place of its text, and the tokens of the second turn's question."""
    tokenizer = AutoTokenizer.from_pretrained(ensure_model())
    texts = {name: encode(tokenizer, text()) for name, text in TEXTS.items()}
    names, lengths = list(texts), [SHORTEST + (LONGEST - SHORTEST) * n // max(1, count - 1) for n in range(count)]
    random.Random(0).shuffle(lengths)
    prompts = []
    for number, length in enumerate(lengths):
        name = names[number % len(names)]
        start = number * 997 % max(1, len(texts[name]) - length)
        prompts.append(Prompt(name, texts[name][start : start + length]))
    return prompts, encode(tokenizer, QUESTION)


@contextmanager
def served(attention: str, options: Sequence[str], args: argparse.Namespace, note: Console) -> Iterator[ServerProcess]:
    size = Size(tokens=BATCH * (LONGEST + 1000), requests=BATCH)
    given = ["--disable-overlap-schedule", *options]
    log = args.out / f"lossless-{attention}.log"
    with launched(attention, None, budget=None, size=size, given=given, log=log, note=note) as server:
        yield server


def parts(
    server: ServerProcess,
    prompts: Sequence[Prompt],
    turns: Sequence[list[int]],
    first: Sequence[dict[str, Any]],
    second: Sequence[dict[str, Any]],
    tokens: int,
) -> Iterator[tuple[str, Sequence[dict[str, Any]], list[dict[str, Any]]]]:
    """Each part's name, what dense attention answered, and what this server answers."""
    yield "alone", first, [ask(server, prompt.tokens, tokens) for prompt in prompts]
    with ThreadPoolExecutor(BATCH) as pool:
        yield "batch", first, list(pool.map(lambda prompt: ask(server, prompt.tokens, tokens), prompts))
        yield "second turn", second, list(pool.map(lambda turn: ask(server, turn, tokens), turns))


def ask(server: ServerProcess, prompt: Sequence[int], tokens: int) -> dict[str, Any]:
    sampling = {"temperature": 0, "ignore_eos": True, "max_new_tokens": tokens}
    body = {"input_ids": list(prompt), "sampling_params": sampling}
    response = httpx.post(f"{server.url}/generate", json=body, timeout=TIMEOUT, trust_env=False)
    answer: dict[str, Any] = response.raise_for_status().json()
    return answer


def compare(
    prompts: Sequence[Prompt],
    budget: int,
    drafts: int,
    part: str,
    expected: Sequence[dict[str, Any]],
    found: Sequence[dict[str, Any]],
) -> list[Row]:
    """A row per prompt."""
    rows = []
    for prompt, theirs, ours in zip(prompts, expected, found, strict=True):
        pairs = list(zip(ours["output_ids"], theirs["output_ids"], strict=True))
        equal = next((place for place, (one, other) in enumerate(pairs) if one != other), len(pairs))
        meta = ours["meta_info"]
        accepted = round(meta["spec_accept_length"] - 1, 3)
        sizes = len(prompt.tokens), budget, drafts
        rows.append(Row(prompt.text, *sizes, part, meta["cached_tokens"], len(pairs), equal, accepted))
    return rows


def write(out: Path, rows: Sequence[Row]) -> None:
    columns = [field.name for field in fields(Row)]
    driver.write_rows(out / "lossless_tokens.csv", columns, map(asdict, rows))
    driver.write_json(out / "lossless_tokens.json")


def show(rows: Sequence[Row]) -> None:
    one, same = rows[0], sum(row.equal == row.tokens for row in rows)
    mean = sum(row.accepted for row in rows) / len(rows)
    print(
        f"K = {one.budget}, {one.drafts} drafts, {one.part}: {same} of {len(rows)} answers of {one.tokens} tokens are "
        f"dense attention's; {mean:.2f} drafts accepted per round",
        flush=True,
    )


if __name__ == "__main__":
    main()
