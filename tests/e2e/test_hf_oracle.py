"""The oracle itself: dense when the budget covers everything, different when it does not, and the merge by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from .hf_oracle import OracleSettings, SparseOracle, choose_tokens, merge_rankings, near_tie

SETTINGS = OracleSettings(budget=16, recency_ratio=0.25, sink_tokens=2, select_layers=(2, 4))
VOCABULARY = 97


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """Six layers, 6 query heads over 2 KV heads, random weights wide enough for peaked attention; float64."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.4,
        max_position_embeddings=256,
    )
    return LlamaForCausalLM(config).double().eval()


def random_tokens(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()


@torch.inference_mode()
def eager_logprobs(model: LlamaForCausalLM, context: list[int], tokens: list[int]) -> list[float]:
    """Plain Hugging Face eager attention over the whole sequence at once."""
    model.set_attn_implementation("eager")
    logits = model(torch.tensor([context + tokens])).logits[0, len(context) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(tokens)), torch.tensor(tokens)].tolist()


def test_a_budget_above_every_length_is_plain_eager_attention(model: LlamaForCausalLM) -> None:
    prompt, generated = random_tokens(60, seed=1), random_tokens(20, seed=2)
    oracle = SparseOracle(model, SETTINGS.always_dense())
    assert oracle.score([(prompt, generated)])[0] == pytest.approx(eager_logprobs(model, prompt, generated), abs=1e-4)
    assert oracle.sparse_steps == 0


def test_a_budget_equal_to_the_last_length_is_still_dense(model: LlamaForCausalLM) -> None:
    prompt, generated = random_tokens(30, seed=1), random_tokens(11, seed=2)
    expected = eager_logprobs(model, prompt, generated)
    exactly_enough = SparseOracle(model, replace(SETTINGS, budget=40))
    assert exactly_enough.score([(prompt, generated)])[0] == pytest.approx(expected, abs=1e-4)
    assert exactly_enough.sparse_steps == 0
    one_short = SparseOracle(model, replace(SETTINGS, budget=39))
    scored = one_short.score([(prompt, generated)])[0]
    assert one_short.sparse_steps == 1
    assert scored[:-1] == pytest.approx(expected[:-1], abs=1e-4)
    assert scored[-1] != pytest.approx(expected[-1], abs=1e-4)


def test_a_small_budget_gives_clearly_different_logprobs(model: LlamaForCausalLM) -> None:
    prompt, generated = random_tokens(60, seed=1), random_tokens(20, seed=2)
    oracle = SparseOracle(model, SETTINGS)
    sparse, dense = oracle.score([(prompt, generated)])[0], eager_logprobs(model, prompt, generated)
    assert sparse[0] == pytest.approx(dense[0], abs=1e-4), "the first token comes from the dense prefill"
    assert max(abs(a - b) for a, b in zip(sparse, dense, strict=True)) > 0.05
    assert oracle.sparse_steps == len(generated) - 1


@pytest.mark.parametrize("last_token_fed", [False, True], ids=["last-token-extended", "last-token-decoded"])
def test_turns_follow_each_other_in_one_cache(model: LlamaForCausalLM, last_token_fed: bool) -> None:
    first, reply, second, answer = (random_tokens(n, seed=n) for n in (40, 9, 7, 12))
    oracle = SparseOracle(model, SETTINGS.always_dense())
    scored = oracle.score([(first, reply), (second, answer)], last_token_fed=last_token_fed)
    assert scored[0] == pytest.approx(eager_logprobs(model, first, reply), abs=1e-4)
    assert scored[1] == pytest.approx(eager_logprobs(model, first + reply + second, answer), abs=1e-4)


def test_how_the_last_token_of_a_turn_was_fed_matters_when_decoding_is_sparse(model: LlamaForCausalLM) -> None:
    oracle, turns = (
        SparseOracle(model, SETTINGS),
        [(random_tokens(n, seed=n), random_tokens(9, seed=1)) for n in (40, 7)],
    )
    extended, decoded = oracle.score(turns), oracle.score(turns, last_token_fed=True)
    assert extended[0] == decoded[0]
    assert extended[1] != pytest.approx(decoded[1], abs=1e-3)


def test_a_prompt_that_is_scored_twice_is_not_disturbed_by_the_first_time(model: LlamaForCausalLM) -> None:
    oracle, turn = SparseOracle(model, SETTINGS), (random_tokens(60, seed=1), random_tokens(20, seed=2))
    assert oracle.score([turn]) == oracle.score([turn])


def test_rankings_are_merged_rank_by_rank() -> None:
    rankings = np.array([[7, 3, 5, 1], [7, 1, 2, 3], [4, 7, 2, 6]])
    # rank 0: 7, (7), 4; rank 1: 3, 1, (7); rank 2: 5, 2, (2); rank 3: (1), (3), 6
    assert merge_rankings(rankings, 8) == [7, 4, 3, 1, 5, 2, 6]
    assert merge_rankings(rankings, 4) == [7, 4, 3, 1]
    assert merge_rankings(rankings, 0) == []


def test_the_set_of_a_hand_made_step() -> None:
    # K = 4, r = 0.5, s = 1: m = 2 selected among positions 1..6, sink 0, recent 7, whatever those two score.
    settings = OracleSettings(budget=4, recency_ratio=0.5, sink_tokens=1, select_layers=(2,))
    # Head 0 ranks 2, 3, 4 (3 and 4 tie), 1, 5, 6; head 1 ranks 2, 4, ...: read 2, (2), 3 and stop.
    scores = np.array([[9, 3, 9, 5, 5, 1, 0, 9], [-9, 0, 9, 2, 8, 7, 7, -9]], dtype=np.float32)
    assert choose_tokens(scores, settings).positions == [0, 2, 3, 7]
    # K = 6, r = 0.25: m = 4, one more rank is read: 2, (2), 3, 4, (4), 5.
    assert choose_tokens(scores, replace(settings, budget=6, recency_ratio=0.25)).positions == [0, 2, 3, 4, 5, 7]


def test_a_near_tie_is_one_that_changes_the_set() -> None:
    scores = np.array([[9.0, 8.0, 7.0, 6.999, 1.0], [9.0, 2.0, 8.0, 0.5, 7.9999]])
    rankings = np.argsort(-scores, axis=1, kind="stable")
    # 0, (0), 1, 2 | (2), 4: ranks 1 and 2 of head 1 are close, and with 4 before 2 the three would be 0, 1, 4.
    assert merge_rankings(rankings, 3) == [0, 1, 2]
    assert near_tie(scores, rankings, 3, margin=0.01)
    assert not near_tie(scores, rankings, 3, margin=1e-5)
    # Ranks 2 and 3 of head 0 are close too, but with two tokens neither is read.
    assert not near_tie(scores, rankings, 2, margin=0.01)


def test_sinks_are_left_out_when_the_remainder_is_smaller() -> None:
    # K = 4, r = 0.25: m = 3 and one other token, fewer than 4 sinks, so the one is the most recent.
    settings = OracleSettings(budget=4, recency_ratio=0.25, sink_tokens=4, select_layers=(2,))
    scores = np.array([[5, 4, 3, 2, 1, 0]], dtype=np.float32)
    assert choose_tokens(scores, settings).positions == [0, 1, 2, 5]


def test_a_short_request_keeps_every_token() -> None:
    scores = np.zeros((3, 16), dtype=np.float32)
    assert choose_tokens(scores, SETTINGS).positions == list(range(16))
    assert len(choose_tokens(np.zeros((3, 17), dtype=np.float32), SETTINGS).positions) == 16
