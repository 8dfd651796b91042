"""Servers of several ranks on a CPU, whose token sets are written down and whose counters are read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx

from . import record_sets
from .conftest import running, start_server
from .native_client import NativeClient


@contextmanager
def ranked_server(
    model_path: Path,
    folder: Path,
    ranks: int,
    config: Mapping[str, Any],
    *options: str,
    more: Sequence[ModuleType] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[NativeClient]:
    """A server of ``ranks`` processes that serve lim; ``record_sets.read`` finds its sets in ``folder``.

    ``more``: plugins beside ``record_sets``, and ``env`` for them.
    """
    environment = {
        "SGLANG_LIM_CONFIG": json.dumps(config),
        "SGLANG_CPU_OMP_THREADS_BIND": "|".join(str(rank % (os.cpu_count() or 1)) for rank in range(ranks)),
        record_sets.FOLDER: str(folder),
        **(env or {}),
    }
    flags = ["--attention-backend", "lim", "--enable-metrics", "--tp-size", str(ranks), *options]
    server = start_server(model_path, folder / "server.log", *flags, env=environment, plugins=[record_sets, *more])
    with contextmanager(running)(server) as ready:
        yield NativeClient(ready.url)


def counters_by_group(client: NativeClient) -> list[dict[str, Any]]:
    """lim's counters in ``/server_info``, of every group of ranks that attend to the same requests."""
    answer = httpx.get(f"{client.url}/server_info", timeout=60).raise_for_status()
    return [state["lim"]["counters"] for state in answer.json()["internal_states"]]


def attended_in_prometheus(client: NativeClient) -> dict[str, float]:
    """Tokens that Prometheus says were attended to, by role."""
    text = httpx.get(f"{client.url}/metrics", timeout=60).raise_for_status().text
    found = re.findall(r'^sglang:lim_attended_tokens_total\{.*?role="(\w+)".*?\} (\S+)$', text, re.MULTILINE)
    assert len(found) == len(dict(found)), "one line for each role"
    return {role: float(value) for role, value in found}


def decoded_lengths(prompt: int, new_tokens: int) -> range:
    """Lengths in tokens at which a request surely decodes, whose prompt has ``prompt`` tokens.

    Overlap scheduling runs one step more, whose token is dropped, unless another request's prefill comes first.
    """
    return range(prompt + 1, prompt + new_tokens)


def by_request(
    lines: Sequence[Mapping[str, Any]], selects: int, lengths: Container[int]
) -> dict[tuple[int, int], list[list[int]]]:
    """The sets that requests of these lengths had by select layer and length, which no two requests share.

    Args:
        lines: what one rank wrote, in order.
        selects: SELECT layers of the model.
    """
    found: dict[tuple[int, int], list[list[int]]] = {}
    for call, line in enumerate(lines):
        for length, chosen in zip(line["lengths"], line["sets"], strict=True):
            if length in lengths:
                found.setdefault((call % selects, length), []).append(chosen)
    return found
