"""The page of `lim-sglang inspect`: which tokens the select layers chose while a model generated, in one HTML file."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from lim_sglang.config import LimConfig
from lim_sglang.layer_plan import LayerPlan, LayerRole

if TYPE_CHECKING:
    from lim_sglang.tools.inspect.data import Inspection, SelectEvent


@dataclass(frozen=True)
class Setting:
    """What was inspected, for the page's head.

    Attributes:
        model: the model's name.
        num_heads: query heads.
        config: the configuration; its select layers may be "auto".
        plan: the layers' roles.
        source: where the select layers come from.
    """

    model: str
    num_heads: int
    config: LimConfig
    plan: LayerPlan
    source: str


def page_data(inspection: Inspection, texts: Sequence[str], setting: Setting) -> dict[str, Any]:
    """What the page's script reads, in plain JSON types.

    ``steps[i][j]`` is the event of decode step ``i`` in select layer ``j``: ``{"set": ..., "keys": ...}``. The set is
    its first position, then the differences; null within the budget, where it is everything. The number of tokens
    and the window of an event follow from ``promptTokens`` and ``split``.
    """
    config, split = setting.config, setting.config.parts
    layers = setting.plan.select_layers
    encoded = [_encode(event) for event in inspection.events]
    return {
        "model": setting.model,
        "numLayers": len(setting.plan.roles),
        "numAttending": sum(map(setting.plan.count, LayerRole)),
        "numSparse": setting.plan.count(LayerRole.SPARSE),
        "numHeads": setting.num_heads,
        "recencyRatio": config.recency_ratio,
        "sinkTokens": config.sink_tokens,
        "split": {"budget": split.budget, "selected": split.selected, "sinks": split.sinks, "recent": split.recent},
        "selectLayers": list(layers),
        "source": setting.source,
        "promptTokens": len(inspection.prompt_ids),
        "stopped": inspection.stopped,
        "tokens": list(texts),
        "steps": [encoded[start : start + len(layers)] for start in range(0, len(encoded), len(layers))],
    }


def _encode(event: SelectEvent) -> dict[str, Any]:
    if len(event.positions) == event.length:
        return {"set": None, "keys": []}
    before = (0, *event.positions[:-1])
    return {"set": [here - last for here, last in zip(event.positions, before, strict=True)], "keys": event.keys}


def render_page(data: dict[str, Any]) -> str:
    """The page as one HTML file: no other file, no network; a content security policy lets only its own script run."""
    folder = files(__package__) / "templates"
    template, style, script = (
        (folder / f"inspect.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    parts = {
        "STYLE": style,
        "SCRIPT": script,
        "STYLE_HASH": _csp_hash(style),
        "SCRIPT_HASH": _csp_hash(script),
        # No "<" in the data, so nothing in it can end its element or open a comment.
        "DATA": json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return re.sub("@(" + "|".join(parts) + ")@", lambda match: parts[match[1]], template)


def _csp_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
