"""What is carried between rounds follows the batch."""

from __future__ import annotations

import torch

from lim_sglang.speculative.spec_input import RoundInput


def test_requests_leave_and_join() -> None:
    state = RoundInput(5, last_tokens=torch.tensor([10, 11, 12]))
    state.filter_batch(new_indices=torch.tensor([2, 0]), has_been_filtered=False)
    assert state.bonus_tokens is not None
    assert state.bonus_tokens.tolist() == [12, 10]
    state.merge_batch(RoundInput(5, last_tokens=torch.tensor([20])))
    assert state.bonus_tokens.tolist() == [12, 10, 20]


def test_it_is_a_verification_to_sglang() -> None:
    state = RoundInput(5, positions=torch.arange(10))
    assert state.is_verify_input()
    assert not state.is_draft_input()
    assert (state.num_tokens_per_req, state.num_tokens_for_logprob_per_req) == (5, 5)
