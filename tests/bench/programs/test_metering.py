"""The metered connection: decode time, generations broken off, and no server at all."""

from __future__ import annotations

import pytest

from bench.programs.metering import ProgramError, check_finished, connect, decode_seconds, decode_speed

from .metered_request import request


def test_decode_time_is_that_in_which_any_request_decodes() -> None:
    requests = [request(1, 3, 5), request(2, 5, 7), request(7, 8, 2), request(None, 100, 0)]
    assert decode_seconds(requests) == 5
    assert decode_speed(requests) == (4 + 6 + 1) / 5
    assert decode_speed([request(1, 1, 1), request(None, 9, 0)]) is None


def test_a_generation_must_have_finished() -> None:
    check_finished({"finish_reason": {"type": "length", "length": 4}})
    for meta in (None, {}, {"finish_reason": None}, {"finish_reason": {"type": "abort", "message": "out of memory"}}):
        with pytest.raises(ProgramError, match="broke a generation off"):
            check_finished(meta)


def test_nothing_at_the_url_costs_one_line() -> None:
    with pytest.raises(ProgramError, match=r"^no server answers at http://127\.0\.0\.1:9 \(.*\); fix: start it"):
        connect("http://127.0.0.1:9")
