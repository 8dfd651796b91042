"""Configuration: what is accepted, which source wins, and how every impossible value is refused."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lim_kernels.select.budget import MAX_BUDGET, BudgetParts
from lim_sglang.config import (
    ENV_CONFIG,
    FLAGS,
    KEYS,
    MODEL_SOURCE,
    LimConfig,
    LimConfigError,
    parse_config_json,
    parse_flag_values,
    resolve_config,
)

# key, value, how the message shows the value, the way out
REJECTED = [
    ("budget", 0, "0", "2048"),
    ("budget", True, "True", "2048"),
    ("budget", 1024.0, "1024.0", "write 1024"),
    ("budget", float("nan"), "nan", "2048"),
    ("budget", None, "None", "2048"),
    ("budget", 2**31, "2147483648", "2048"),
    ("budget", 10**400, "1000", "2048"),
    ("recency_ratio", -0.01, "-0.01", "0.25"),
    ("recency_ratio", 1.01, "1.01", "0.25"),
    ("recency_ratio", float("nan"), "nan", "0.25"),
    ("recency_ratio", True, "True", "0.25"),
    ("sink_tokens", -1, "-1", "4"),
    ("drafts", "never", "'never'", '"always"'),
    ("draft_weights", "int4", "'int4'", '"int8"'),
    ("select_layers", [-1, 2], "[-1, 2]", "count layers from 0"),
    ("select_layers", [12, 2], "[12, 2]", "write [2, 12]"),
    ("select_layers", [2, 2, 12], "[2, 2, 12]", "write [2, 12]"),
    ("select_layers", [], "[]", "at least one layer"),
    ("select_layers", "a\nb", r"'a\nb'", "[2, 12]"),
    ("select_layers", [2, 12.0], "[2, 12.0]", "[2, 12]"),
    ("select_layers", [True, 2], "[True, 2]", "[2, 12]"),
]


def refusal(build: Callable[[], object]) -> str:
    with pytest.raises(LimConfigError) as error:
        build()
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_defaults() -> None:
    config = resolve_config(None, None, None)
    assert config == LimConfig(2048, 0.25, 4, "auto")
    assert config.parts == BudgetParts(budget=2048, selected=1536, sinks=4, recent=508)
    assert isinstance(LimConfig(recency_ratio=1).recency_ratio, float)
    assert resolve_config({}, {}, "  ") == config


@pytest.mark.parametrize("layers", ["auto", (2, 12)], ids=str)
def test_to_dict_is_plain_json_and_reads_back(layers: Any) -> None:
    config = LimConfig(512, 0.5, 8, layers, "always")
    text = json.dumps(config.to_dict())
    assert resolve_config(None, None, text) == config
    assert resolve_config(None, json.loads(text), None) == config


def test_each_key_from_the_strongest_source() -> None:
    env = '{"budget": 100, "recency_ratio": 0.5, "sink_tokens": 1, "select_layers": [1]}'
    model = {"budget": 200, "recency_ratio": 0.6, "select_layers": [2, 3]}
    assert resolve_config(None, None, env) == LimConfig(100, 0.5, 1, (1,))
    assert resolve_config(None, model, env) == LimConfig(200, 0.6, 1, (2, 3))
    assert resolve_config({"budget": 300}, model, env) == LimConfig(300, 0.6, 1, (2, 3))
    assert resolve_config({"select_layers": "auto"}, model, env) == LimConfig(200, 0.6, 1, "auto")


@pytest.mark.parametrize(
    ("variable", "env", "drafts"),
    [
        (None, "", "auto"),
        ("auto", "", "measured"),
        ("always", "", "always"),
        ("always", '{"drafts": "measured"}', "measured"),
        ("sometimes", "", "auto"),
    ],
    ids=str,
)
def test_the_drafts_variable_comes_last(variable: str | None, env: str, drafts: str) -> None:
    assert resolve_config({}, {}, env, variable).drafts == drafts


@pytest.mark.parametrize(("drafts", "by_costs"), [("auto", "cuda"), ("measured", "cpu cuda"), ("always", "")])
def test_costs_decide_on_a_gpu_or_where_they_are_asked_for(drafts: str, by_costs: str) -> None:
    config = LimConfig(drafts=drafts)
    assert [device for device in ("cpu", "cuda") if config.drafts_by_costs(device)] == by_costs.split()


@pytest.mark.parametrize(("key", "value", "shown", "fix"), REJECTED, ids=lambda part: str(part)[:20])
def test_rejected_value_names_its_source(key: str, value: Any, shown: str, fix: str) -> None:
    message = refusal(lambda: LimConfig(**{key: value}))
    assert message.startswith(f"{key}={shown}")
    head, _, tail = message.partition("; ")
    assert f"expected {KEYS[key].allowed}" in head
    assert fix in tail
    assert refusal(lambda: resolve_config(None, {key: value}, None)) == f"{MODEL_SOURCE}: {message}"
    assert refusal(lambda: resolve_config({key: value}, None, None)) == f"{FLAGS[key]}: {message}"
    assert refusal(lambda: resolve_config(None, None, json.dumps({key: value}))) == f"{ENV_CONFIG}: {message}"


def test_rejected_even_where_overridden() -> None:
    message = refusal(lambda: resolve_config({"budget": 64}, {"budget": 128}, '{"budget": 0}'))
    assert message.startswith(f"{ENV_CONFIG}: budget=0 ")


@pytest.mark.parametrize(
    ("key", "fix"), [("recency-ratio", "did you mean recency_ratio?"), ("page_size", "remove it"), (7, "remove it")]
)
def test_unknown_key(key: Any, fix: str) -> None:
    message = refusal(lambda: resolve_config(None, {key: 2048}, None))
    assert message.startswith(f"{MODEL_SOURCE}: unknown key {key!r} (value 2048)")
    assert "allowed keys are budget, recency_ratio, sink_tokens, select_layers, drafts" in message
    assert message.endswith(fix)


def test_model_config_must_be_an_object() -> None:
    message = refusal(lambda: resolve_config(None, [], None))  # type: ignore[arg-type]
    assert message.startswith(f"{MODEL_SOURCE}: [] is not an object; expected a JSON object")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("{budget: 2048}", "malformed JSON at line 1, column 2: Expecting property name enclosed in double quotes"),
        ('{"budget": 1,\n "sink_tokens": }', "line 2, column 17: Expecting value"),
        ("[2, 12]", "[2, 12] is not an object"),
        ('{"budget": 1, "budget": 2}', "key 'budget' is given twice"),
        ('{"budget": ' + "9" * 5000 + "}", "unusable JSON"),
    ],
    ids=["bare key", "second line", "list", "twice", "long"],
)
def test_malformed_json(text: str, where: str) -> None:
    message = refusal(lambda: parse_config_json(text, "SOME_SOURCE"))
    assert message.startswith("SOME_SOURCE: ")
    assert where in message
    assert "expected a JSON object such as" in message


def test_flag_values() -> None:
    assert parse_flag_values(dict.fromkeys(FLAGS)) == {}
    texts = dict(zip(FLAGS, ["1024", "0.5", " 8 ", "2, 12", "always", "int8"], strict=True))
    expected = LimConfig(1024, 0.5, 8, (2, 12), "always", "int8")
    assert resolve_config(parse_flag_values(texts), None, None) == expected
    assert parse_flag_values({"select_layers": "auto"}) == {"select_layers": "auto"}


@pytest.mark.parametrize(
    ("key", "text", "shown", "fix"),
    [
        ("budget", "2k", "'2k'", "--lim-budget 2048"),
        ("budget", "0", "0", "2048"),
        ("recency_ratio", "25%", "'25%'", "--lim-recency-ratio 0.25"),
        ("select_layers", "2;12", "'2;12'", "--lim-select-layers 2,12"),
        ("select_layers", "", "''", "--lim-select-layers 2,12"),
    ],
)
def test_rejected_flag_text(key: str, text: str, shown: str, fix: str) -> None:
    message = refusal(lambda: parse_flag_values({key: text}))
    assert message.startswith(f"{FLAGS[key]}: {key}={shown} is not allowed: expected {KEYS[key].allowed}; ")
    assert fix in message


@pytest.mark.parametrize(
    ("budget", "ratio", "sinks", "room", "fixes"),
    [
        (2048, 0.0, 4, 0, ["recency_ratio to at least 0.002"]),
        (16, 0.25, 5, 4, ["recency_ratio to at least 0.3125", "budget to at least 20"]),
        (8, 0.0, 9, 0, []),
    ],
    ids=["no window", "one sink too many", "only fewer sinks"],
)
def test_sinks_that_do_not_fit(budget: int, ratio: float, sinks: int, room: int, fixes: list[str]) -> None:
    message = refusal(lambda: LimConfig(budget, ratio, sinks))
    assert message.startswith(f"sink_tokens={sinks} does not fit: budget={budget} with recency_ratio={ratio} ")
    assert f"so 0 to {room} sinks are allowed" in message
    assert f"set sink_tokens to at most {room}" in message
    assert re.findall(r"or (\S+ to at least \S+)", message) == fixes


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 5000) | st.integers(1, MAX_BUDGET), st.floats(0, 1), st.integers(0, 6000))
def test_sinks_are_never_dropped_and_every_way_out_works(budget: int, ratio: float, sinks: int) -> None:
    try:
        assert LimConfig(budget, ratio, sinks).parts.sinks == sinks
    except LimConfigError as error:
        given_values = {"budget": budget, "recency_ratio": ratio, "sink_tokens": sinks}
        for key, text in re.findall(r"(\w+) to at (?:least|most) ([\d.e-]+)", str(error)):
            LimConfig(**(given_values | {key: float(text) if key == "recency_ratio" else int(text)}))


@pytest.mark.parametrize(
    ("flags", "model", "env", "source"),
    [
        ({"budget": 2}, {"sink_tokens": 4}, None, f"--lim-budget and {MODEL_SOURCE}"),
        (None, None, '{"budget": 2, "select_layers": [2]}', ENV_CONFIG),
        ({"select_layers": [2]}, None, '{"budget": 2}', ENV_CONFIG),
    ],
    ids=["flag and model", "environment", "select layers play no part"],
)
def test_misfit_names_the_sources(flags: Any, model: Any, env: str | None, source: str) -> None:
    message = refusal(lambda: resolve_config(flags, model, env))
    assert message.startswith(f"{source}: sink_tokens=")
