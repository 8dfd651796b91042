"""What lim reports in /server_info."""

from __future__ import annotations

from typing import Any

import pytest

from lim_sglang.tools.servers.access import AccessError
from lim_sglang.tools.servers.state import LimStateError, NoLimError, lim_part, lim_state

from ...info_server import serving
from ...recorded_state import LIM_AFTER, LIM_BEFORE


@pytest.mark.parametrize("info", [{}, {"internal_states": [{"model_path": "/m"}]}])
def test_server_without_lim_is_refused(info: dict[str, Any]) -> None:
    with pytest.raises(NoLimError, match='reports no "lim" state'):
        lim_part(info)


def test_ranks_are_added_up() -> None:
    before, after = ({"lim": state} for state in (LIM_BEFORE, LIM_AFTER))
    found = lim_part({"internal_states": [before, after, after]})
    assert (found["config"], found["plan"]) == (LIM_AFTER["config"], LIM_AFTER["plan"])
    assert found["counters"] == {
        "decode_steps": 41,
        "decode_rows": 41,
        "dense_rows_in_extend": 0,
        "attended_tokens": {"dense": 160300, "select": 160300, "sparse": 270140},
        "context_tokens": {"dense": 160300, "select": 160300, "sparse": 2083900},
    }
    assert LIM_BEFORE["counters"]["decode_steps"] == 7, "what was read is left as it is"


@pytest.mark.parametrize("states", [[{}, {"lim": LIM_AFTER}], [{"lim": LIM_AFTER}, {"lim": None}]])
def test_a_rank_without_lim_is_not_hidden(states: list[dict[str, Any]]) -> None:
    with pytest.raises(LimStateError, match=r'^1 of 2 ranks report "lim" .*; fix: start the server again') as refused:
        lim_part({"internal_states": states})
    assert not isinstance(refused.value, NoLimError), "it must not pass for a dense server"


def test_ranks_of_different_plans_have_no_sum() -> None:
    other = LIM_AFTER | {"config": LIM_AFTER["config"] | {"budget": 64}}
    with pytest.raises(LimStateError, match='ranks report different "lim" plans'):
        lim_part({"internal_states": [{"lim": LIM_AFTER}, {"lim": other}]})


def test_a_server_with_a_key() -> None:
    with serving({"/server_info": {"internal_states": [{"lim": LIM_AFTER}]}}, key="k") as server:
        assert lim_state(server.url, 60, "k") == LIM_AFTER
        with pytest.raises(AccessError, match="wants a key"):
            lim_state(server.url, 60)
        with pytest.raises(AccessError, match="wants another key"):
            lim_state(server.url, 60, "other")
