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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import httpx
from rich.console import Console
from transformers import AutoTokenizer

from bench import driver
from bench.driver import Row
from bench.fidelity.texts import TEXTS, encode
from lim_sglang.errors import exit_with
from lim_sglang.tools.common import positive
from lim_sglang.tools.servers.embedded_model import ensure_model
from lim_sglang.tools.servers.local import DENSE, LOSSLESS, Size, launched
from lim_sglang.tools.servers.process import ServerError, ServerProcess

SETTINGS = [(128, 3), (256, 6), (512, 8)]
SHORTEST, LONGEST, BATCH = 1000, 6000, 8
QUESTION = "\nNow say in one sentence what the text above is about.\n"
TIMEOUT = 3600.0
# ``part`` is alone, batch or second turn; ``equal`` counts the tokens before the first that is not dense attention's;
# ``accepted`` is drafts per round, as the server says of this request.
COLUMNS = ["text", "prompt_tokens", "budget", "drafts", "part", "cached_tokens", "tokens", "equal", "accepted"]
Answer = dict[str, Any]
Prompt = tuple[str, list[int]]  # the name of its text, and its tokens


def main() -> None:
    args = parse()
    rows: list[Row] = []
    prompts, question = make_prompts(args.prompts)
    asked = [tokens for _, tokens in prompts]
    try:
        with served(DENSE, [], args) as server:
            first = ask(server, asked, args.tokens, 1)
            turns = [[*tokens, *answer["output_ids"], *question] for tokens, answer in zip(asked, first, strict=True)]
            second = ask(server, turns, args.tokens, 1)
        parts = (("alone", asked, first, 1), ("batch", asked, first, BATCH), ("second turn", turns, second, BATCH))
        for budget, drafts in args.settings:
            options = [f"--lim-budget {budget}", f"--speculative-num-draft-tokens {drafts + 1}"]
            with served(LOSSLESS, options, args) as server:
                for part, given, expected, at_once in parts:
                    found = compare(prompts, expected, ask(server, given, args.tokens, at_once))
                    rows += [row | {"budget": budget, "drafts": drafts, "part": part} for row in found]
                    driver.write_rows(args.out / "lossless_tokens.csv", COLUMNS, rows)
                    driver.write_json(args.out / "lossless_tokens.json")
                    show(rows[-len(prompts) :])
    except ServerError as error:
        exit_with(str(error))
    if any(row["equal"] < row["tokens"] for row in rows):
        sys.exit("lossless: error: not dense attention's tokens; see lossless_tokens.csv")


def parse() -> argparse.Namespace:
    parser = driver.parser(__doc__)
    shown = " ".join(f"{budget}x{drafts}" for budget, drafts in SETTINGS)
    parser.add_argument("--settings", type=setting, nargs="+", default=SETTINGS, help=f"budget x drafts ({shown})")
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
        prompts.append((name, texts[name][start : start + length]))
    return prompts, encode(tokenizer, QUESTION)


def served(attention: str, options: Sequence[str], args: argparse.Namespace) -> AbstractContextManager[ServerProcess]:
    size = Size(tokens=BATCH * (LONGEST + 1000), requests=BATCH)
    given = ["--disable-overlap-schedule", *options]
    log, note = args.out / f"lossless-{attention}.log", Console(stderr=True, highlight=False)
    return launched(attention, None, budget=None, size=size, given=given, log=log, note=note)


def ask(server: ServerProcess, prompts: Sequence[list[int]], tokens: int, at_once: int) -> list[Answer]:
    def answer(prompt: list[int]) -> Answer:
        sampling = {"temperature": 0, "ignore_eos": True, "max_new_tokens": tokens}
        body = {"input_ids": prompt, "sampling_params": sampling}
        response = httpx.post(f"{server.url}/generate", json=body, timeout=TIMEOUT, trust_env=False)
        found: Answer = response.raise_for_status().json()
        return found

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(answer, prompts))


def compare(prompts: Sequence[Prompt], expected: Sequence[Answer], found: Sequence[Answer]) -> list[Row]:
    """A row per prompt."""
    rows = []
    for (text, tokens), theirs, ours in zip(prompts, expected, found, strict=True):
        same = [one == other for one, other in zip(ours["output_ids"], theirs["output_ids"], strict=True)]
        meta = ours["meta_info"]
        rows.append(
            {
                "text": text,
                "prompt_tokens": len(tokens),
                "cached_tokens": meta["cached_tokens"],
                "tokens": len(same),
                "equal": [*same, False].index(False),
                "accepted": round(meta["spec_accept_length"] - 1, 3),
            }
        )
    return rows


def show(rows: Sequence[Row]) -> None:
    one, same = rows[0], sum(row["equal"] == row["tokens"] for row in rows)
    mean = sum(row["accepted"] for row in rows) / len(rows)
    print(
        f"K = {one['budget']}, {one['drafts']} drafts, {one['part']}: {same} of {len(rows)} answers of {one['tokens']} "
        f"tokens are dense attention's; {mean:.2f} drafts accepted per round",
        flush=True,
    )


if __name__ == "__main__":
    main()
