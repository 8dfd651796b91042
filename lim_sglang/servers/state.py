"""What lim reports in a server's ``GET /server_info``: configuration, plan and counters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

ROLES = ("dense", "select", "sparse")


class LimStateError(RuntimeError):
    """The server reports no state of lim; the message is one line with the fix."""


def lim_part(server_info: Mapping[str, Any]) -> dict[str, Any]:
    """``internal_states[0]["lim"]`` of an answer to ``GET /server_info``.

    Raises:
        LimStateError: the server runs without lim.
    """
    for state in server_info.get("internal_states") or []:
        if "lim" in state:
            return dict(state["lim"])
    raise LimStateError('the server reports no "lim" state in /server_info; run `lim-sglang doctor`')


def lim_state(url: str, timeout: float) -> dict[str, Any]:
    """``lim_part`` of the server at ``url``; httpx's errors where it does not answer within ``timeout`` seconds."""
    return lim_part(httpx.get(f"{url}/server_info", timeout=timeout, trust_env=False).raise_for_status().json())


def counted_since(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Tokens attended and context tokens by role between two states: {"attended": ..., "context": ...}."""
    old, new = before["counters"], after["counters"]
    names = {"attended": "attended_tokens", "context": "context_tokens"}
    return {short: {role: new[key][role] - old[key][role] for role in ROLES} for short, key in names.items()}
