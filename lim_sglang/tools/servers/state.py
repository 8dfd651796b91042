"""What lim reports in a server's ``GET /server_info``: configuration, plan and counters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from lim_sglang.tools.servers.access import check_access, headers

ROLES = ("dense", "select", "sparse")


class LimStateError(RuntimeError):
    """The server's state of lim cannot be told; the message is one line with the fix."""


class NoLimError(LimStateError):
    """The server runs without lim."""


def lim_part(server_info: Mapping[str, Any]) -> dict[str, Any]:
    """lim's state in an answer to ``GET /server_info``: ``{"config": ..., "plan": ..., "counters": ...}``.

    ``internal_states`` has an entry for each ``--dp-size`` rank: they share configuration and plan, their counters are
    added up.

    Raises:
        NoLimError: no rank reports lim.
        LimStateError: some ranks report it and others do not, or their plans differ: no sum would be the server's.
    """
    states = server_info.get("internal_states") or []
    found = [state["lim"] for state in states if state.get("lim")]
    if not found:
        raise NoLimError('the server reports no "lim" state in /server_info; run `lim-sglang doctor`')
    if len(found) < len(states):
        raise LimStateError(
            f'{len(found)} of {len(states)} ranks report "lim" in /server_info, the others decode without it; '
            "fix: start the server again, with the same environment for all ranks"
        )
    if any((one["config"], one["plan"]) != (found[0]["config"], found[0]["plan"]) for one in found):
        raise LimStateError(
            'the ranks report different "lim" plans in /server_info; fix: start the server again, with the same '
            "environment for all ranks"
        )
    return dict(found[0]) | {"counters": added_up([one["counters"] for one in found])}


def added_up(counters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of counters of the same names; those by role are added role by role."""
    columns = {name: [one[name] for one in counters] for name in counters[0]}
    return {
        name: added_up(values) if isinstance(values[0], Mapping) else sum(values) for name, values in columns.items()
    }


def lim_state(url: str, timeout: float, key: str | None = None) -> dict[str, Any]:
    """``lim_part`` of the server at ``url``, asked with ``key``.

    Raises:
        AccessError: the server wants a key, or another one.
        httpx.HTTPError: it does not answer within ``timeout`` seconds.
    """
    answer = httpx.get(f"{url}/server_info", headers=headers(key), timeout=timeout, trust_env=False)
    return lim_part(check_access(answer, url, key).raise_for_status().json())


def counted_since(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Tokens attended and context tokens by role between two states: {"attended": ..., "context": ...}."""
    old, new = before["counters"], after["counters"]
    names = {"attended": "attended_tokens", "context": "context_tokens"}
    return {short: {role: new[key][role] - old[key][role] for role in ROLES} for short, key in names.items()}


def rounds_since(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, int]:
    """The lossless mode's totals between two states of a server that has it."""
    old, new = (state["counters"]["lossless"] for state in (before, after))
    return {name: new[name] - old[name] for name in new}


def accepted_per_round(totals: Mapping[str, int]) -> float | None:
    """Mean of accepted drafts per request and round, by the lossless mode's totals; None before its first round."""
    rounds = totals["request_rounds"]
    return totals["accepted_tokens"] / rounds if rounds else None
