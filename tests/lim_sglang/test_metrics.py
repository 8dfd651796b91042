"""Counters against sums done by hand."""

from __future__ import annotations

import json
import subprocess
import sys

from lim_sglang.config import LimConfig
from lim_sglang.layer_plan import LayerPlan
from lim_sglang.metrics import DecodeMetrics, first_draft_acceptance
from lim_sglang.tools.servers.state import accepted_per_round

CONFIG = LimConfig(budget=10, sink_tokens=1, select_layers=(2, 4))
PLAN = LayerPlan.from_select_layers(6, (2, 4))  # 2 dense, 2 select, 2 sparse


def test_two_steps() -> None:
    metrics = DecodeMetrics(CONFIG, PLAN)
    metrics.observe_decode([4, 30])
    metrics.observe_decode([10, 11, 1, 1])  # padded to four
    metrics.observe_mixed(3)
    report = json.loads(json.dumps(metrics.report()))
    assert report["counters"] == {
        "decode_steps": 2,
        "decode_rows": 4,
        "dense_rows_in_extend": 3,
        "attended_tokens": {"dense": 2 * 55, "select": 2 * 55, "sparse": 2 * (4 + 10 + 10 + 10)},
        "context_tokens": {"dense": 2 * 55, "select": 2 * 55, "sparse": 2 * 55},
    }
    assert report["plan"] == {"dense": 2, "select": 2, "sparse": 2, "select_layers": [2, 4]}
    assert report["config"] == CONFIG.to_dict()


def test_rounds() -> None:
    metrics = DecodeMetrics(CONFIG, PLAN)
    assert "lossless" not in metrics.report()["counters"]
    rounds = metrics.add_rounds()
    for accepted in ([0, 3, 4], [4, 4]):
        rounds.observe_verify_step()
        rounds.observe_drafts(accepted, 4)
    rounds.observe_plain_step()
    counters = json.loads(json.dumps(metrics.report()))["counters"]
    assert counters["lossless"] == {
        "verify_steps": 2,
        "plain_steps": 1,
        "request_rounds": 5,
        "drafted_tokens": 20,
        "accepted_tokens": 15,
        "accepted_first_drafts": 4,
    }
    assert metrics.report()["lossless"] == {"first_draft_acceptance": 0.8, "draft_weights": {"format": "model"}}
    assert first_draft_acceptance(counters["lossless"]) == 0.8
    assert accepted_per_round(counters["lossless"]) == 3.0
    assert accepted_per_round(metrics.add_rounds().report()) is None
    assert metrics.report()["lossless"]["first_draft_acceptance"] is None


def test_prometheus_shows_the_same_totals() -> None:
    code = """
from prometheus_client import generate_latest
from lim_sglang.config import LimConfig
from lim_sglang.layer_plan import LayerPlan
from lim_sglang.metrics import DecodeMetrics
metrics = DecodeMetrics(LimConfig(budget=10, sink_tokens=1), LayerPlan.from_select_layers(6, (2, 4)), prometheus=True)
metrics.observe_decode([4, 30])
print(generate_latest().decode())
"""
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300).stdout
    assert 'sglang:lim_attended_tokens_total{role="sparse"} 28.0' in text
    assert 'sglang:lim_context_tokens_total{role="sparse"} 68.0' in text
