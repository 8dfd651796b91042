"""Rows of the lossless comparison, from answers made by hand."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from bench.fidelity.lossless import LONGEST, SHORTEST, compare, make_prompts, setting


def answer(*tokens: int) -> dict[str, Any]:
    return {"output_ids": list(tokens), "meta_info": {"cached_tokens": 5, "spec_accept_length": 3.5}}


def test_the_first_difference_counts() -> None:
    prompts = [("a", [1] * 10), ("b", [1] * 20)]
    found = compare(prompts, [answer(1, 2, 3), answer(1, 2, 3)], [answer(1, 2, 3), answer(1, 7, 3)])
    of_both = {"tokens": 3, "cached_tokens": 5, "accepted": 2.5}
    assert found == [
        {"text": "a", "prompt_tokens": 10, "equal": 3} | of_both,
        {"text": "b", "prompt_tokens": 20, "equal": 1} | of_both,
    ]
    with pytest.raises(ValueError, match="zip"):
        compare([("a", [1])], [answer(1, 2)], [answer(1)])


def test_settings() -> None:
    assert setting("128x3") == (128, 3)
    for wrong in ("128", "axb", "1x2x3", "0x3"):
        with pytest.raises(argparse.ArgumentTypeError, match="for example 256x6"):
            setting(wrong)


def test_prompts_are_ragged_and_of_every_kind() -> None:
    prompts, question = make_prompts(24)
    lengths = sorted(len(tokens) for _, tokens in prompts)
    assert (lengths[0], lengths[-1], len(set(lengths))) == (SHORTEST, LONGEST, 24)
    assert len({text for text, _ in prompts}) == 5
    assert len({tuple(tokens[:50]) for _, tokens in prompts}) == len(prompts)
    assert question
