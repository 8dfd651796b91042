"""A request as the metered connection notes it, made by hand."""

from __future__ import annotations

from bench.programs.metering import Request


def request(first: float | None, ended: float, tokens: int, **counts: int) -> Request:
    prompt, cached = counts.get("prompt", 10), counts.get("cached", 4)
    return Request("prefix" if first is None else "generate", prompt, cached, tokens, 0.0, first, ended)
