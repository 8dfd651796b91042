"""Real text of five kinds, read where packages leave it, and prompts whose answer lies somewhere in a long context."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import random
import statistics
import typing
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from lim_sglang.tools.analysis.texts import read_texts

LICENCES = ("GPL-3", "GPL-2", "LGPL-3", "Artistic")


def licences() -> str:
    """English legal prose that Debian's base system carries."""
    found = [Path("/usr/share/common-licenses") / name for name in LICENCES]
    return "\n\n".join(path.read_text() for path in found if path.is_file())


def language_reference() -> str:
    """Python's own help topics, on which `lim-sglang calibrate` calibrates by default."""
    return read_texts([])


def source_code() -> str:
    """Modules of Python's standard library."""
    return "\n\n".join(inspect.getsource(module) for module in (statistics, typing, dataclasses, argparse))


def package_descriptions() -> str:
    """What installed packages say of themselves, in the order of their names."""
    found: list[Any] = sorted((d.metadata for d in distributions()), key=lambda m: m["Name"].lower())
    texts = [str(m.get_payload() or m["Description"] or "") for m in found]
    return "\n\n".join(text for text in texts if len(text) > 1000)


def worked_steps(seed: int = 0, problems: int = 400) -> str:
    """Generated arithmetic and logic, step by step, each problem built on numbers of an earlier one."""
    draw = random.Random(seed)
    lines, totals = [], [draw.randint(10, 99)]
    for number in range(1, problems + 1):
        start = totals[draw.randrange(max(0, len(totals) - 20), len(totals))]
        add, times, take = draw.randint(2, 60), draw.randint(2, 9), draw.randint(1, 40)
        first, second = start + add, (start + add) * times
        result = second - take
        totals.append(result % 997)
        even = "even" if result % 2 == 0 else "odd"
        lines.append(
            f"Problem {number}. Start from {start}, add {add}, multiply by {times}, then take away {take}.\n"
            f"Step 1: {start} + {add} = {first}.\nStep 2: {first} * {times} = {second}.\n"
            f"Step 3: {second} - {take} = {result}.\nSince {result} is {even}, and every {even} number divided by 997 "
            f"leaves what is kept, we keep {totals[-1]} for later.\n"
        )
    return "\n".join(lines)


CALIBRATION_TEXT = "language reference"
TEXTS: dict[str, Callable[[], str]] = {
    "licences": licences,
    CALIBRATION_TEXT: language_reference,
    "source code": source_code,
    "package descriptions": package_descriptions,
    "worked steps": worked_steps,
}


@dataclasses.dataclass(frozen=True)
class Recall:
    """A prompt whose answer is in it: ``prefix`` to prefill, ``question`` to feed, ``answer`` to expect, token ids."""

    prefix: list[int]
    question: list[int]
    answer: list[int]


def recall_prompt(tokenizer: Any, filler: list[int], task: str, context: int, depth: float, seed: int) -> Recall:
    """Hide one fact, or four where ``task`` is "keys", in ``context`` tokens; ask for the one at ``depth``, 0 to 1."""
    draw = random.Random(f"{task} {context} {depth} {seed}")
    names = draw.sample(["Amber", "Boris", "Clara", "Dmitri", "Elena", "Felix", "Greta", "Hugo"], 4)
    codes = {name: "".join(draw.choices("0123456789", k=5)) for name in names}
    depths = {names[0]: depth}
    if task == "keys":
        depths |= {name: draw.random() for name in names[1:]}
    facts = {name: encode(tokenizer, f"\nThe secret code of {name} is {codes[name]}.\n") for name in depths}
    room = context - sum(map(len, facts.values()))
    start = draw.randrange(max(1, len(filler) - room))
    body = filler[start : start + room]
    for name in sorted(facts, key=lambda name: -depths[name]):
        place = int(depths[name] * room)
        body = body[:place] + facts[name] + body[place:]
    question = encode(
        tokenizer, f"\nQuestion: What is the secret code of {names[0]}?\nAnswer: The secret code of {names[0]} is"
    )
    return Recall(body, question, encode(tokenizer, f" {codes[names[0]]}"))


def encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids
