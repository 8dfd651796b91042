"""Which sliding window a Hugging Face model's layers have, as its config tells."""

from __future__ import annotations

from typing import Any


def window_in_effect(config: Any) -> int | None:
    """The window, in tokens, that some layer attends within; None where every layer sees the whole context.

    A window that no layer uses is none, and so is one that is no smaller than the context.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    unused = getattr(config, "use_sliding_window", True) is False
    if not window or unused or (kinds is not None and "sliding_attention" not in kinds):
        return None
    context = getattr(config, "max_position_embeddings", None)
    return None if context is not None and window >= context else int(window)
