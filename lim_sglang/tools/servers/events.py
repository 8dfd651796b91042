"""The events of a streamed answer.

Lines end at a line feed alone: httpx's lines and those of ``str.splitlines`` also end at characters that a text may
hold, such as U+2028, which SGLang does not escape.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any


class EventReader:
    """Puts together the events of bytes that come in any pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[dict[str, Any]]:
        """The JSON objects of the events that end in this piece; ``[DONE]`` is none."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return [json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: {")]


def read_events(pieces: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The events of ``httpx.Response.iter_bytes()``."""
    reader = EventReader()
    for piece in pieces:
        yield from reader.feed(piece)


async def read_events_async(pieces: AsyncIterable[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The events of ``httpx.Response.aiter_bytes()``."""
    reader = EventReader()
    async for piece in pieces:
        for event in reader.feed(piece):
            yield event
