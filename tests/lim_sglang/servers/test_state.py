"""What lim reports in /server_info."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lim_sglang.servers.state import LimStateError, counted_since, lim_part

from ..recorded_state import LIM_AFTER, LIM_BEFORE


def test_lim_part() -> None:
    info = {"version": "0.5.16", "internal_states": [{"model_path": "/m", "lim": LIM_AFTER}]}
    assert lim_part(json.loads(json.dumps(info))) == LIM_AFTER


@pytest.mark.parametrize("info", [{}, {"internal_states": None}, {"internal_states": [{"model_path": "/m"}]}])
def test_server_without_lim_is_refused(info: dict[str, Any]) -> None:
    with pytest.raises(LimStateError, match='reports no "lim" state'):
        lim_part(info)


def test_what_was_counted_between_two_states() -> None:
    assert counted_since(LIM_BEFORE, LIM_AFTER) == {
        "attended": {"dense": 80000, "select": 80000, "sparse": 133120},
        "context": {"dense": 80000, "select": 80000, "sparse": 1040000},
    }
