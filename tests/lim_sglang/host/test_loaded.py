"""The loaded layers have the last word on the plan: SGLang's own models, built, and its layers by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from lim_kernels.select.shard import HeadShard
from lim_sglang.config import LimConfigError
from lim_sglang.host import ranks
from lim_sglang.host.loaded import plan_of_loaded, shard_of_loaded
from lim_sglang.host.refusals import UnsupportedError
from lim_sglang.layer_plan import LayerPlan, LayerRole

from .tiny_llama import LLAMA as TINY

DEPTH, CONTEXT, BUDGET = 6, 512, 16
PLAN = LayerPlan.from_select_layers(DEPTH, (2, 4))
LLAMA = TINY | {"num_hidden_layers": DEPTH, "vocab_size": 10000, "max_position_embeddings": CONTEXT, "pad_token_id": 0}


def test_a_window_that_drops_nothing_is_served(tmp_path: Path) -> None:
    """In a process of its own. The window that drops something is launched in ``tests/e2e/test_user_errors.py``."""
    model = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "sliding_window": 2 * CONTEXT}
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | model))
    config = {"budget": BUDGET, "sink_tokens": 2, "select_layers": [2, 4]}
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "load_model.py", tmp_path],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"SGLANG_LIM_CONFIG": json.dumps(config)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["plan"] == {"dense": 2, "select": 2, "sparse": 2, "select_layers": [2, 4]}
    counters = report["counters"]
    assert counters["attended_tokens"]["sparse"] == 2 * BUDGET * counters["decode_rows"] > 0


# Layers by hand: what no small model of SGLang shows.


def layer(layer_id: int, heads: int = 4, kv_heads: int = 2, head_dim: int = 16, **options: Any) -> Any:
    from sglang.srt.layers.radix_attention import RadixAttention

    return RadixAttention(heads, head_dim, head_dim**-0.5, kv_heads, layer_id, **options)


def layers(count: int = DEPTH) -> list[Any]:
    return [layer(number) for number in range(count)]


def runner(
    found: Sequence[Any], stage: tuple[int, int] = (0, DEPTH), window: int | None = None, device: str = "cpu"
) -> Any:
    """What ``plan_of_loaded`` reads of a ``ModelRunner`` that loaded these layers."""
    config = SimpleNamespace(
        context_len=CONTEXT, num_attention_heads=12, hf_config=SimpleNamespace(architectures=["SomeModel"])
    )
    return SimpleNamespace(
        model=nn.ModuleList(found),
        model_config=config,
        layer_info=SimpleNamespace(start_layer=stage[0], end_layer=stage[1]),
        sliding_window_size=window,
        device=device,
    )


def refusal(found: Sequence[Any], **options: Any) -> str:
    with pytest.raises(UnsupportedError) as caught:
        plan_of_loaded(PLAN, runner(found, **options))
    text = str(caught.value)
    assert text.startswith("the model (SomeModel), as loaded, does not work with lim: ")
    assert text.endswith("; use SGLang's own attention backend (leave out --attention-backend lim)")
    assert "\n" not in text
    return text


def test_a_plain_model_keeps_its_plan() -> None:
    plan = plan_of_loaded(PLAN, runner([*layers(), nn.Linear(2, 2), nn.MultiheadAttention(4, 2)]))
    assert plan.roles == PLAN.roles
    assert [plan.count(role) for role in plan.kinds] == [2, 2, 2]
    assert plan.select_layers == (2, 4)


def test_layers_that_attend_otherwise_are_named() -> None:
    from sglang.srt.layers.radix_attention import AttentionType

    cross, encoder = layer(3, is_cross_attention=True), layer(3, attn_type=AttentionType.ENCODER_ONLY)
    assert "layer 3 is cross-attention" in refusal([*layers(3), cross])
    assert "layer 3 is encoder-only attention" in refusal([*layers(3), encoder])
    images = layer(
        3, attn_type=AttentionType.DECODER_BIDIRECTIONAL
    )  # both ways in prefill; decode knows no later token
    assert plan_of_loaded(PLAN, runner([*layers(3), images, layer(4), layer(5)])).count(LayerRole.SPARSE) == 2


def test_numbers_that_have_no_place_in_the_plan_are_named() -> None:
    assert "none of its layers is attention over a KV cache" in refusal([nn.Linear(2, 2)])
    assert "layer 1 attends 2 times in a step" in refusal([*layers(), layer(1)])
    assert "layers 0 to 6, and its config tells of 0 to 5: layer 6 has no place" in refusal(layers(DEPTH + 1))
    assert "layer 2 has no place" in refusal([layer(2), *layers()[3:]], stage=(3, 6))


@pytest.mark.parametrize("window", [CONTEXT - 2, 63, 1])
def test_layers_with_a_window_keep_it(window: int) -> None:
    windowed = [*layers(5), layer(5, sliding_window_size=window)]
    for of_backend in (None, window, window + 1):  # some classes count the current token twice
        found = runner(windowed, window=of_backend)
        plan = plan_of_loaded(PLAN, found)
        assert [plan.role(number) for number in (0, 2, 3, 5)] == [
            *(LayerRole.DENSE, LayerRole.SELECT, LayerRole.SPARSE, LayerRole.WINDOW)
        ]
        assert [plan.count(role) for role in plan.kinds] == [2, 2, 1, 1]
        assert plan.window_tokens == window + 1
        assert found.sliding_window_size == (of_backend or window), "or FlashInfer would show them everything"


def test_windows_that_cannot_be_served_are_named() -> None:
    assert "a sliding window of 64 tokens drops some that a set could name" in refusal(layers(), window=63)
    every = [layer(number, sliding_window_size=63) for number in range(DEPTH)]
    assert "a sliding window of 64 tokens, and no layer attends to all" in refusal(every, window=63)
    differing = [*layers(4), layer(4, sliding_window_size=63), layer(5, sliding_window_size=31)]
    assert "its sliding windows differ (32 and 64 tokens)" in refusal(differing, window=63)
    one = [*layers(5), layer(5, sliding_window_size=63)]
    assert "a sliding window of 64 tokens is one of 32 to SGLang's backend" in refusal(one, window=31)


def test_a_layer_with_a_window_selects_nothing() -> None:
    with pytest.raises(LimConfigError, match="layer 4 of this model does not attend to all tokens"):
        plan_of_loaded(PLAN, runner([*layers(4), layer(4, sliding_window_size=63), layer(5)], window=63))


def test_a_window_as_long_as_the_context_is_none() -> None:
    wide = [*layers(5), layer(5, sliding_window_size=CONTEXT - 1)]
    assert plan_of_loaded(PLAN, runner(wide, window=CONTEXT - 1)).count(LayerRole.SPARSE) == 2


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"heads": 8}, "layer 5 has 8 query and 2 KV heads of 16 and 16, layer 0 4 query and 2 KV heads of 16 and 16"),
        ({"kv_heads": 1}, "layer 5 has 4 query and 1 KV heads"),
        ({"head_dim": 32}, "heads of 32 and 32"),
        ({"v_head_dim": 8}, "heads of 16 and 8"),
    ],
    ids=str,
)
def test_layers_of_another_shape_are_named(other: dict[str, int], said: str) -> None:
    assert said in refusal([*layers(5), layer(5, **other)])


def test_keys_and_values_of_two_sizes_are_refused_on_a_gpu_alone() -> None:
    uneven = [layer(number, v_head_dim=8) for number in range(DEPTH)]
    assert "its keys and values differ in size (16 and 8)" in refusal(uneven, device="cuda:0")
    assert plan_of_loaded(PLAN, runner(uneven)).count(LayerRole.SPARSE) == 2


def test_a_stage_counts_its_own_layers() -> None:
    plan = plan_of_loaded(PLAN, runner(layers()[2:5], stage=(2, 5)))
    assert [plan.count(role) for role in plan.kinds] == [0, 2, 1]
    assert plan.select_layers == (2, 4)
    assert plan.role(3) is LayerRole.SPARSE


def test_layers_without_attention_are_not_counted_and_select_nothing() -> None:
    plan = plan_of_loaded(PLAN, runner([each for each in layers() if each.layer_id != 3]))
    assert [plan.count(role) for role in plan.kinds] == [2, 2, 1]
    with pytest.raises(LimConfigError, match="layer 2 of this model does not attend to all tokens"):
        plan_of_loaded(PLAN, runner([each for each in layers() if each.layer_id != 2]))


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_knows_which_heads_it_holds(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    gather = object()
    monkeypatch.setattr(ranks, "attention_ranks", lambda: (3, rank, gather))
    shard = shard_of_loaded(runner(layers()))
    assert shard == HeadShard(num_heads=12, first_head=4 * rank, devices=3, all_gather=gather)  # type: ignore[arg-type]


def test_one_rank_holds_them_all() -> None:
    """SGLang's groups are not there: this process stands alone."""
    assert shard_of_loaded(runner(layers())) is None


def test_heads_that_the_ranks_of_a_group_do_not_share_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with classes of SGLang that split heads by the TP size where DP attention makes smaller groups."""
    monkeypatch.setattr(ranks, "attention_ranks", lambda: (2, 0, None))
    with pytest.raises(UnsupportedError) as caught:
        shard_of_loaded(runner(layers()))
    assert "2 ranks attend to the same requests with 4 query heads each, and it has 12" in str(caught.value)
    assert "\n" not in str(caught.value)
