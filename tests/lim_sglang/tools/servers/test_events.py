"""Events put together from any pieces, whatever line ends of Unicode their texts hold."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lim_sglang.tools.servers.events import read_events

TEXTS = st.text(st.sampled_from("a\u2028\u2029\u0085\x0b\x0c\x1cé"), max_size=5)


@given(st.lists(TEXTS, max_size=4), st.lists(st.integers(0, 120), max_size=4))
def test_events_come_whole_from_any_pieces(texts: list[str], cuts: list[int]) -> None:
    events = [{"text": text} for text in texts]
    stream = "".join(f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events) + "data: [DONE]\n\n"
    ends = [0, *sorted(cuts), 10_000]
    pieces = [stream.encode()[begin:end] for begin, end in pairwise(ends)]
    assert list(read_events(pieces)) == events
