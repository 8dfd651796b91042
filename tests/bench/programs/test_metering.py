"""The metered connection: what requests cost, and generations broken off."""

from __future__ import annotations

import pytest

from bench.programs.metering import ProgramError, Request, check_finished, cost


def request(first: float | None, ended: float, tokens: int) -> Request:
    return Request("prefix" if first is None else "generate", 10, 4, tokens, first, ended)


def test_decode_time_is_that_in_which_any_request_decodes() -> None:
    spent = cost([request(1, 3, 5), request(2, 5, 7), request(7, 8, 2), request(None, 100, 0)], 100.0)
    assert spent == {
        "requests": 4,
        "prompt_tokens": 40,
        "cached_tokens": 16,
        "generated_tokens": 14,
        "wall_seconds": 100.0,
        "decode_seconds": 5,
        "decode_tokens_per_s": (4 + 6 + 1) / 5,
    }
    assert cost([request(1, 1, 1), request(None, 9, 0)], 9.0)["decode_tokens_per_s"] is None


def test_a_generation_must_have_finished() -> None:
    check_finished({"finish_reason": {"type": "length", "length": 4}})
    for meta in (None, {}, {"finish_reason": None}, {"finish_reason": {"type": "abort", "message": "out of memory"}}):
        with pytest.raises(ProgramError, match="broke a generation off"):
            check_finished(meta)
