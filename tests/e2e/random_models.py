"""Servers of tiny random models with lim, held to Hugging Face's model and to the oracle over it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch

from .hf_oracle import SparseOracle
from .native_client import Generation, NativeClient

TOLERANCE = 2e-4  # of log-probabilities, float32 with other orders of summation
NEW_TOKENS = 24
TOKENS = 500  # of the vocabulary, the special ones behind them left out


def random_prompt(length: int, seed: int) -> list[int]:
    draw = random.Random(1000 * length + seed)
    return [draw.randrange(TOKENS) for _ in range(length)]


@dataclass
class Served:
    """A model, and a server of it with lim.

    Attributes:
        seeds: by length, those of prompts with which no rounding changes a set or an expert.
    """

    client: NativeClient
    oracle: SparseOracle
    seeds: Mapping[int, int]

    def prompt(self, length: int) -> list[int]:
        return random_prompt(length, self.seeds[length])


def check(oracle: SparseOracle, *turns: tuple[list[int], Generation], last_token_fed: bool = False) -> None:
    """The log-probabilities of a conversation are the oracle's, which no rounding could change the sets of."""
    scored = oracle.score([(ids, generation.tokens) for ids, generation in turns], last_token_fed=last_token_fed)
    assert oracle.near_ties == []
    for (_, generation), expected in zip(turns, scored, strict=True):
        assert generation.logprobs == pytest.approx(expected, abs=TOLERANCE)


def dense_tokens(oracle: SparseOracle, ids: list[int]) -> list[int]:
    """What Hugging Face's model says after these tokens, greedily."""
    oracle.model.set_attn_implementation("eager")
    inputs = torch.tensor([ids])
    found = oracle.model.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
    )
    return found[0, len(ids) :].tolist()  # type: ignore[no-any-return]
