"""Rows of the lossless comparison, from answers made by hand."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from bench.fidelity.lossless import BATCH, LONGEST, SHORTEST, Prompt, compare, make_prompts, setting


def answer(*tokens: int) -> dict[str, Any]:
    return {"output_ids": list(tokens), "meta_info": {"cached_tokens": 5, "spec_accept_length": 3.5}}


def test_the_first_difference_counts() -> None:
    prompts = [Prompt("a", [1] * 10), Prompt("b", [1] * 20)]
    found = compare(prompts, 256, 6, "batch", [answer(1, 2, 3), answer(1, 2, 3)], [answer(1, 2, 3), answer(1, 7, 3)])
    assert [(row.text, row.prompt_tokens, row.tokens, row.equal) for row in found] == [("a", 10, 3, 3), ("b", 20, 3, 1)]
    assert {(row.budget, row.drafts, row.part, row.cached_tokens, row.accepted) for row in found} == {
        (256, 6, "batch", 5, 2.5)
    }


def test_answers_of_other_lengths_are_no_comparison() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare([Prompt("a", [1])], 256, 6, "alone", [answer(1, 2)], [answer(1)])


def test_settings() -> None:
    assert setting("128x3") == (128, 3)
    for wrong in ("128", "128x", "axb", "1x2x3", "0x3", "128x-1"):
        with pytest.raises(argparse.ArgumentTypeError, match="for example 256x6"):
            setting(wrong)


@pytest.mark.parametrize("count", [14, 3 * BATCH])
def test_prompts_are_ragged_and_of_every_kind(count: int) -> None:
    prompts, question = make_prompts(count)
    lengths = sorted(len(prompt.tokens) for prompt in prompts)
    assert (lengths[0], lengths[-1]) == (SHORTEST, LONGEST)
    assert len(set(lengths)) == count
    assert len({prompt.text for prompt in prompts}) == 5
    assert len({tuple(prompt.tokens[:50]) for prompt in prompts}) == len(prompts)
    assert question
