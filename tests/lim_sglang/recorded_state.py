"""Two states of lim, as a server told them before and after a conversation."""

from __future__ import annotations

from typing import Any

# A /server_info as recorded from SGLang 0.5.16 with lim, cut to what matters.
LIM_BEFORE: dict[str, Any] = {
    "config": {"budget": 512, "recency_ratio": 0.25, "sink_tokens": 4, "select_layers": "auto"},
    "plan": {"dense": 2, "select": 2, "sparse": 26, "select_layers": [2, 17]},
    "counters": {
        "decode_steps": 7,
        "decode_rows": 7,
        "dense_rows_in_extend": 0,
        "attended_tokens": {"dense": 100, "select": 100, "sparse": 1300},
        "context_tokens": {"dense": 100, "select": 100, "sparse": 1300},
    },
}
LIM_AFTER: dict[str, Any] = LIM_BEFORE | {
    "counters": {
        "decode_steps": 17,
        "decode_rows": 17,
        "dense_rows_in_extend": 0,
        "attended_tokens": {"dense": 80100, "select": 80100, "sparse": 134420},
        "context_tokens": {"dense": 80100, "select": 80100, "sparse": 1041300},
    }
}
