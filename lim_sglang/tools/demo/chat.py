"""What the demo says: a long shared prefix, questions that build on each other, and the tokenizer's view of both."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lim_sglang.tools.common import CommandError

MIN_PREFIX_TOKENS = 3000
WORKED_CASES = 36

# Reserved per turn for the question and the chat template's own tokens, when the context is checked beforehand.
QUESTION_TOKENS = 120


def build_prefix(cases: int = WORKED_CASES) -> str:
    """Worked arithmetic and logic cases, the same text each time; about 85 tokens each for SmolLM2."""
    head = "You reason step by step. Follow the worked cases below and end every solution with its answer.\n"
    kinds = (_stock_case, _packing_case, _lamp_case, _order_case)
    return head + "".join(f"\nCase {number}. {kinds[number % 4](number)}\n" for number in range(1, cases + 1))


def _stock_case(n: int) -> str:
    start, trucks, load, sold = 17 + n * 13 % 80, 2 + n % 7, 5 + n * 7 % 19, 3 + n * 5 % 14
    total = start + trucks * load
    return (
        f"A depot holds {start} crates. {trucks} trucks bring {load} crates each, then {sold} crates are sold. "
        f"Step 1: the trucks bring {trucks} * {load} = {trucks * load} crates. Step 2: now there are {start} + "
        f"{trucks * load} = {total} crates. Step 3: after the sale {total} - {sold} = {total - sold} are left. "
        f"Answer: {total - sold}."
    )


def _packing_case(n: int) -> str:
    rate, hours, box = 11 + n * 3 % 17, 3 + n % 5, 4 + n % 6
    total = rate * hours
    return (
        f"A crew picks {rate} apples per minute for {hours} minutes and packs boxes of {box}. Step 1: they pick "
        f"{rate} * {hours} = {total} apples. Step 2: {total} // {box} = {total // box} boxes are full. Step 3: "
        f"{total} - {total // box} * {box} = {total % box} are left over. Answer: {total // box} boxes, "
        f"{total % box} left over."
    )


def _lamp_case(n: int) -> str:
    first, second, third = (("red", "green", "blue", "white", "amber")[(n + k) % 5] for k in (0, 1, 3))
    lit = n % 3 != 0
    end = (
        f"Step 2: since the {second} lamp is on, the {third} lamp is off. Answer: the {third} lamp is off."
        if lit
        else f"Step 2: without the {second} lamp, rule 2 says nothing. Answer: the {third} lamp is undecided."
    )
    return (
        f"Rule 1: the {second} lamp is on exactly when the {first} lamp is on. Rule 2: if the {second} lamp is on, the "
        f"{third} lamp is off. Fact: the {first} lamp is {'on' if lit else 'off'}. Step 1: by rule 1 the {second} lamp "
        f"is {'on' if lit else 'off'}. {end}"
    )


def _order_case(n: int) -> str:
    one, two, three = (("Ada", "Ben", "Cleo", "Dan", "Eve")[(n * 2 + k) % 5] for k in (0, 1, 2))
    age, gap, more = 20 + n * 11 % 40, 2 + n % 6, 1 + n % 4
    return (
        f"{one} is {age} years old. {two} is {gap} years older than {one}, and {three} is {more} years younger than "
        f"{two}. Step 1: {two} is {age} + {gap} = {age + gap}. Step 2: {three} is {age + gap} - {more} = "
        f"{age + gap - more}. Step 3: {two} has the largest number. Answer: {two} is the oldest, {three} is "
        f"{age + gap - more}."
    )


def question(turn: int) -> str:
    """What the user asks in a turn, counted from 0; after the first, each builds on the conversation."""
    opening = (
        "Solve a new case like the ones above, step by step: a depot holds 64 crates, 5 trucks bring 12 crates each, "
        "then 29 crates are sold. How many are left?"
    )
    bring, take = 3 + turn % 5, 7 + turn * 4 % 11
    follow_ups = (
        "Which two worked cases are most like this one? Say why, step by step.",
        "Check your first solution again, step by step, and say whether the answer stands.",
        f"Go on from the crates that were left: {bring} more trucks bring {take} crates each. How many are there now?",
    )
    return opening if turn == 0 else follow_ups[turn % 3]


@dataclass(frozen=True)
class Chat:
    """The model's tokenizer and chat template, with the shared prefix as the system message."""

    tokenizer: Any
    id_of_text: Mapping[str, int]

    @classmethod
    def load(cls, model: Path) -> Chat:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model)
        return cls(tokenizer, unambiguous(tokenizer.batch_decode([[number] for number in range(len(tokenizer))])))

    @staticmethod
    def opening() -> list[dict[str, str]]:
        return [{"role": "system", "content": build_prefix()}]

    def render(self, messages: Sequence[Mapping[str, str]], *, answer: bool = True) -> list[int]:
        """The prompt's token ids, as the server makes them from the same messages."""
        return list(self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=answer, return_dict=False))

    def check_fits(self, turns: int, max_tokens: int, context: int) -> None:
        """Raise CommandError if the prefix is too short or the whole conversation could outgrow ``context`` tokens."""
        prefix = len(self.render(self.opening(), answer=False))
        if prefix < MIN_PREFIX_TOKENS:
            raise CommandError(
                f"the shared prefix is {prefix} tokens for this tokenizer, {MIN_PREFIX_TOKENS} are needed; "
                "leave out --model-path"
            )
        most = prefix + turns * (max_tokens + QUESTION_TOKENS)
        if most >= context:
            raise CommandError(
                f"--turns {turns} with --max-tokens {max_tokens} could reach {most} tokens, the context holds "
                f"{context}; lower one of them"
            )

    def output_ids(self, pieces: Sequence[str], text: str, stop_id: int | None, count: int) -> tuple[list[int], bool]:
        """The ids of a streamed answer of `count` tokens, and whether they are certainly the server's own.

        The stream names tokens by their text only, and leaves out those that add no text of their own: the stop
        token and parts of a character. Where that is ambiguous the whole text is tokenized again.
        """
        ids = [self.id_of_text.get(piece, -1) for piece in pieces]
        if stop_id is not None and ids[-1:] != [stop_id]:
            ids.append(stop_id)
        if -1 not in ids and len(ids) == count:
            return ids, True
        again = list(self.tokenizer.encode(text, add_special_tokens=False))
        return again + ([] if stop_id is None else [stop_id]), False


def unambiguous(texts: Sequence[str]) -> dict[str, int]:
    """Token text to id, without the texts that several tokens share."""
    last = {text: number for number, text in enumerate(texts)}
    first = {text: number for number, text in reversed(list(enumerate(texts)))}
    return {text: number for text, number in first.items() if last[text] == number}
