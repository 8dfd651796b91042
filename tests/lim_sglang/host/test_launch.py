"""How a launch is judged beyond its refusals: its configuration, its stages, its port and its backend."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lim_sglang.host import compat
from lim_sglang.host.finders import DEFAULT_WIDTH
from lim_sglang.host.launch import check_launch, resolve
from lim_sglang.host.model import model_config
from lim_sglang.host.refusals import UnsupportedError
from lim_sglang.layer_plan import LayerRole

from .conftest import Launch


def test_a_backend_that_sglang_replaces_is_refused(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    server_args = launch()

    class Replaced:
        attention_backend = "triton"

        def __getattr__(self, name: str) -> Any:
            return getattr(server_args, name)

    monkeypatch.setattr(compat, "effective_args", lambda _args: Replaced())
    with pytest.raises(UnsupportedError, match=r"--attention-backend lim .* SGLang replaces it by triton"):
        check_launch(server_args)


def test_a_pipeline_stage_without_a_select_layer_is_refused(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    server_args = launch(pp_size=2)
    monkeypatch.setenv("SGLANG_LIM_CONFIG", '{"select_layers": [2, 4]}')
    with pytest.raises(ValueError, match=r"layers 6 to 11: sparse layer 6 has no select layer"):
        check_launch(server_args)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"budget": 20000}, "budget=20000 selects 15000 tokens by rank: expected at most 8192; lower"),
        ({"budget": 300000, "recency_ratio": 1}, "budget=300000: expected at most 262144 on a GPU; lower"),
    ],
    ids=["ranked", "slots"],
)
def test_a_budget_beyond_the_device_kernels_is_refused(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("SGLANG_LIM_CONFIG", json.dumps(config))
    server_args = launch()
    check_launch(server_args)  # the reference serves it

    class OnGpu:
        device = "cuda"

        def __getattr__(self, name: str) -> Any:
            return getattr(compat_args, name)

    compat_args = compat.effective_args(server_args)
    monkeypatch.setattr(compat, "effective_args", lambda _args: OnGpu())
    with pytest.raises(ValueError, match=message):
        check_launch(server_args)


@pytest.mark.parametrize("backend", ["attention_backend", "decode_attention_backend"])
def test_rows_that_stay_dense_are_told(launch: Launch, caplog: pytest.LogCaptureFixture, backend: str) -> None:
    with caplog.at_level("WARNING", logger="lim_sglang"):
        for mixed in (False, True):
            check_launch(launch(**{backend: "lim"}, enable_mixed_chunk=mixed))
    [told] = {message for message in caplog.messages if message.startswith("lim: --")}
    assert told == "lim: --enable-mixed-chunk: decode rows that share a batch with a prefill are dense"


def test_env_model_override_and_flags_reach_the_plan_in_their_order(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_LIM_CONFIG", '{"budget": 100, "sink_tokens": 2, "recency_ratio": 0.5}')
    server_args = launch(json_model_override_args='{"lim_config": {"budget": 200, "select_layers": [3, 5]}}')
    server_args._lim_flags = {"budget": 300}
    config, plan = resolve(server_args, model_config(server_args))
    assert (config.budget, config.sink_tokens, config.recency_ratio) == (300, 2, 0.5)
    assert plan.select_layers == (3, 5)
    assert plan.count(LayerRole.DENSE) == 3


def test_an_engine_is_told_what_the_lossless_mode_refuses(launch: Launch) -> None:
    with pytest.raises(UnsupportedError, match="add --attention-backend lim"):
        check_launch(launch(attention_backend="torch_native", speculative_algorithm="LIM"))


def lossless_options(server_args: Any) -> tuple[Any, ...]:
    args = compat.effective_args(server_args)
    names = ("num_draft_tokens", "num_steps", "eagle_topk")
    return *(getattr(args, f"speculative_{name}") for name in names), args.disable_overlap_schedule


def test_what_the_lossless_mode_leaves_open_is_resolved(launch: Launch) -> None:
    server_args = launch(speculative_algorithm="LIM")
    check_launch(server_args)
    assert lossless_options(server_args) == (DEFAULT_WIDTH, DEFAULT_WIDTH - 1, 1, True)
    server_args = launch(speculative_algorithm="lim", speculative_num_draft_tokens=5)
    check_launch(server_args)
    assert lossless_options(server_args) == (5, 4, 1, True)


def test_how_many_requests_run_losslessly_is_said_unless_it_was_asked_for(
    launch: Launch, caplog: pytest.LogCaptureFixture
) -> None:
    found = {}
    for asked in (200, None):
        with caplog.at_level("WARNING", logger="lim_sglang"):
            args = compat.effective_args(launch(speculative_algorithm="LIM", max_running_requests=asked))
        found[args.max_running_requests] = [m for m in caplog.messages if m.startswith("lim:")]
        caplog.clear()
    assert found == {200: [], 48: ["lim: 48 requests run at a time; more with --max-running-requests"]}
