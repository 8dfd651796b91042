"""Layer plans: roles from select layers, pipeline stages, presets and the rule."""

from collections.abc import Callable, Sequence

import pytest

from lim_sglang.config import LimConfigError
from lim_sglang.layer_plan import (
    MEASURED,
    PAPER,
    PRESETS,
    RULE,
    LayerPlan,
    LayerRole,
    Preset,
    rule_warning,
    select_layers_for_model,
)

DENSE, SELECT, SPARSE = LayerRole.DENSE, LayerRole.SELECT, LayerRole.SPARSE


def refusal(build: Callable[[], object]) -> str:
    with pytest.raises(LimConfigError) as error:
        build()
    assert "\n" not in str(error.value)
    return str(error.value)


def roles(letters: str) -> tuple[LayerRole, ...]:
    return tuple({"D": DENSE, "s": SELECT, ".": SPARSE}[letter] for letter in letters)


@pytest.mark.parametrize(
    ("num_layers", "select_layers", "letters"),
    [
        (8, (2, 5), "DDs..s.."),
        (6, (2, 3), "DDss.."),
        (1, (0,), "s"),
    ],
)
def test_roles_from_select_layers(num_layers: int, select_layers: tuple[int, ...], letters: str) -> None:
    plan = LayerPlan.from_select_layers(num_layers, select_layers)
    assert plan.roles == roles(letters)
    assert plan.select_layers == select_layers
    assert [plan.role(layer) for layer in range(num_layers)] == list(roles(letters))
    assert [plan.count(role) for role in (DENSE, SELECT, SPARSE)] == [letters.count(letter) for letter in "Ds."]


def test_layers_and_stages_that_are_not_there() -> None:
    plan = LayerPlan.from_select_layers(8, (2, 5))
    with pytest.raises(IndexError, match="layer_id=-1: expected 0 to 7"):
        plan.role(-1)
    with pytest.raises(ValueError, match="expected 0 <= start <= end <= 8"):
        plan.check_stage(0, 9)
    message = refusal(lambda: LayerPlan.from_select_layers(0, (2,)))
    assert message.startswith("num_layers=0 is not allowed: expected at least 1")


@pytest.mark.parametrize(
    ("select_layers", "example"),
    [((2, 8), "--lim-select-layers 2"), ((8,), "--lim-select-layers 4")],
    ids=str,
)
def test_layers_beyond_the_depth(select_layers: tuple[int, ...], example: str) -> None:
    message = refusal(lambda: LayerPlan.from_select_layers(8, select_layers))
    assert message.startswith(f"select_layers={list(select_layers)} is not allowed for a model of 8 layers")
    assert "expected layers from 0 to 7" in message
    assert message.endswith(example)


def test_impossible_select_layers() -> None:
    message = refusal(lambda: LayerPlan.from_select_layers(8, (5, 2)))
    assert message.startswith("select_layers=(5, 2) is not allowed: expected ")


@pytest.mark.parametrize(("letters", "layer"), [("DD.", 2), ("D.s.", 1)])
def test_sparse_before_select(letters: str, layer: int) -> None:
    message = refusal(lambda: LayerPlan(roles(letters)))
    assert f"sparse layer {layer} has no select layer before it" in message
    assert f"expected one from 0 to {layer}" in message


def test_stage_that_works() -> None:
    for start, end in ((0, 8), (0, 4), (2, 5), (5, 8), (5, 6), (0, 2), (3, 3), (8, 8)):
        LayerPlan.from_select_layers(8, (2, 5)).check_stage(start, end)  # DDs..s..


@pytest.mark.parametrize(
    ("start", "end", "layer", "example"), [(3, 8, 3, "2,3,5"), (4, 8, 4, "2,4,5"), (6, 7, 6, "2,5,6")]
)
def test_stage_without_a_set(start: int, end: int, layer: int, example: str) -> None:
    message = refusal(lambda: LayerPlan.from_select_layers(8, (2, 5)).check_stage(start, end))
    assert message.startswith(f"select_layers=[2, 5] is not allowed with a stage of layers {start} to {end - 1}")
    assert f"sparse layer {layer} " in message
    assert message.endswith(f"for example --lim-select-layers {example}")
    fixed = [int(part) for part in example.split(",")]
    LayerPlan.from_select_layers(8, fixed).check_stage(start, end)


LLAMA_8B = (32, "LlamaForCausalLM", 4096, 8)


@pytest.mark.parametrize(
    ("shape", "name", "expected", "source"),
    [
        ((36, "Qwen3ForCausalLM", 4096, 8), "Qwen/Qwen3-8B", (2, 12), PAPER),
        ((40, "Qwen3ForCausalLM", 5120, 8), "Qwen/Qwen3-14B", (2, 12), PAPER),
        ((36, "Qwen3ForCausalLM", 2560, 8), None, (2, 20), PAPER),
        (LLAMA_8B, "/models/deepseek_r1_distill_llama_8b/", (2, 12), PAPER),
        (LLAMA_8B, None, (2, 13), PAPER),
        ((32, "LlamaForCausalLM", 4096, 32), "lmsys/longchat-7b-v1.5-32k", (2, 7), PAPER),
        ((30, "LlamaForCausalLM", 576, 3), "HuggingFaceTB/SmolLM2-135M-Instruct", (2, 17), MEASURED),
        ((36, "Qwen2ForCausalLM", 4096, 8), "other architecture", (2, 24), RULE),
        ((36, "Qwen3ForCausalLM", 4096, 4), "other KV heads", (2, 24), RULE),
        ((36, "Qwen3ForCausalLM", 4097, 8), "other hidden size", (2, 24), RULE),
        ((35, "Qwen3ForCausalLM", 4096, 8), "other depth", (2, 23), RULE),
        ((40, "LlamaForCausalLM", 5120, 8), "DeepSeek-R1-Distill-Llama-70B", (2, 26), RULE),
        ((4, "Tiny", 64, 2), "four layers", (2,), RULE),
        ((6, "Tiny", 64, 2), "six layers", (2, 4), RULE),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_select_layers_for_model(
    shape: tuple[int, str, int, int], name: str | None, expected: tuple[int, ...], source: str
) -> None:
    assert select_layers_for_model(*shape, name) == (expected, source)
    LayerPlan.from_select_layers(shape[0], expected)


@pytest.mark.parametrize(
    ("num_layers", "attending", "expected"),
    [
        (48, range(3, 48, 4), (7, 35)),  # Qwen3-Next
        (64, range(3, 64, 4), (7, 43)),
        (16, range(3, 16, 4), (7, 11)),
        (32, [layer for layer in range(32) if layer not in (1, 20)], (3, 22)),  # most attend
    ],
)
def test_the_rule_counts_layers_that_attend(
    num_layers: int, attending: Sequence[int], expected: tuple[int, ...]
) -> None:
    assert select_layers_for_model(num_layers, "Tiny", 64, 2, "tiny", attending) == (expected, RULE)
    plan = LayerPlan.from_select_layers(num_layers, expected).limited_to(attending, 0, num_layers)
    assert plan.count(DENSE) == (1 if len(attending) < num_layers // 2 else 2)


def test_a_preset_goes_before_what_attends() -> None:
    preset = PRESETS[0]
    shape = preset.num_layers, preset.architecture, preset.hidden_size, preset.num_kv_heads
    assert select_layers_for_model(*shape, None, range(3, 36, 4)) == (preset.select_layers, preset.source)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.model)
def test_every_preset_is_reached(preset: Preset) -> None:
    shape = (preset.num_layers, preset.architecture, preset.hidden_size, preset.num_kv_heads)
    assert select_layers_for_model(*shape, preset.name_hint) == (preset.select_layers, preset.source)
    plan = LayerPlan.from_select_layers(preset.num_layers, preset.select_layers)
    assert plan.count(SPARSE) > preset.num_layers // 2


@pytest.mark.parametrize("num_layers", [1, 3])
def test_too_few_layers_for_auto(num_layers: int) -> None:
    message = refusal(lambda: select_layers_for_model(num_layers, "Tiny", 64, 2, "tiny"))
    assert message.startswith(f'select_layers="auto" is not allowed for a model of {num_layers} layers that attend')
    assert "expected at least 4; name" in message
    assert message.endswith("name select_layers, for example --lim-select-layers 0")
    hybrid = refusal(lambda: select_layers_for_model(12, "Tiny", 64, 2, "tiny", [3, 7, 11]))
    assert "a model of 3 layers that attend" in hybrid
    assert hybrid.endswith("for example --lim-select-layers 3")


@pytest.mark.parametrize("name", ["some/model", None, "two\nlines"], ids=repr)
def test_rule_warning(name: str | None) -> None:
    hint = rule_warning(name, (2, 24))
    assert "\n" not in hint
    assert "--lim-select-layers" in hint
    assert "2,24" in hint
    assert "lim-sglang calibrate" in hint
    assert (name or "this model").split()[0] in hint


def test_layers_that_do_not_attend_are_not_counted() -> None:
    plan = LayerPlan.from_select_layers(8, (2, 5)).limited_to({0, 2, 3, 5, 7}, 0, 8)
    assert [plan.count(role) for role in (DENSE, SELECT, SPARSE)] == [1, 2, 2]
    assert plan.select_layers == (2, 5)
    assert plan.roles == roles("DDs..s..")


@pytest.mark.parametrize(
    ("attending", "said"),
    [
        (
            {0, 1, 2, 3, 4, 6},
            "layer 5 of this model does not attend to all tokens, so it cannot select, expected layers among 0 to 4, 6",
        ),
        ({3}, "layer 2 of this model does not attend to all tokens, so it cannot select, expected layers among 3; for"),
    ],
    ids=str,
)
def test_a_select_layer_must_attend(attending: set[int], said: str) -> None:
    message = refusal(lambda: LayerPlan.from_select_layers(8, (2, 5)).limited_to(attending, 0, 8))
    assert message.startswith("select_layers=[2, 5] is not allowed: layer ")
    assert said in message


def test_a_layer_that_does_not_attend_needs_no_set() -> None:
    plan = LayerPlan.from_select_layers(8, (2, 5))
    assert "sparse layer 4 has no select layer before it" in refusal(lambda: plan.check_stage(4, 8))
    plan.limited_to({0, 1, 2, 3, 5, 6, 7}, 0, 8).check_stage(4, 8)
