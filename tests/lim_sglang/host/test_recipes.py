"""The command lines for large models in the docs, each with the config of its model, judged as at a start."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from lim_sglang.host.launch import resolve
from lim_sglang.host.model import model_config
from lim_sglang.layer_plan import LayerRole

from .conftest import CommandLine, ErrorLine, Launch

ROOT = Path(__file__).parents[3]
PUBLISHED = ROOT / "bench" / "models"
BENCHMARKED = {"Qwen3-8B", "Qwen3-Next-80B-A3B", "Qwen3.5-27B", "Qwen3.5-35B-A3B"}  # configs for benchmarks alone
TABLE = (ROOT / "lim_sglang/docs/several-gpus.md").read_text().split("| model | command |")[1].split("\n\n", 1)[0]
RECIPES = re.findall(r"\| `(sglang serve [^`]+)` \|", TABLE)

# By layers: two thirds of the depth, and layer 2. Layers of multi-token prediction are no part of the depth.
RULE = {
    "Qwen3-30B-A3B": (48, [2, 32]),
    "Qwen3-32B": (64, [2, 42]),
    "Qwen3-235B-A22B": (94, [2, 62]),
    "Qwen3-235B-A22B-FP8": (94, [2, 62]),
    "GLM-4.5": (92, [2, 61]),
    "GLM-4.6": (92, [2, 61]),
    "MiniMax-M2": (62, [2, 41]),
    "Llama-3.3-70B-Instruct": (80, [2, 53]),
}


def config_of(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((PUBLISHED / f"{name}.json").read_text())
    return config


def words_of(command: str) -> tuple[str, list[str]]:
    """The model's name in a command, and its other words after ``sglang serve``."""
    words = shlex.split(command)[2:]
    at = words.index("--model-path")
    return words[at + 1].split("/")[1], words[:at] + words[at + 2 :]


def test_every_config_has_a_recipe_and_a_rule() -> None:
    names = sorted({path.stem for path in PUBLISHED.glob("*.json")} - BENCHMARKED)
    assert sorted({words_of(command)[0] for command in RECIPES}) == names == sorted(RULE)
    assert all("--attention-backend lim" in command for command in RECIPES)


@pytest.mark.parametrize("command", RECIPES)
def test_a_recipe_passes(command_line: CommandLine, error_line: ErrorLine, command: str) -> None:
    name, words = words_of(command)
    assert command_line(config_of(name), shlex.join(["--device", "cuda", *words])) == {}
    # Its config was judged: one that SGLang cannot read yet would pass unseen.
    line = error_line(command_line, config_of(name), "--device cuda --tp 5")
    assert f"error: --tp-size 5 ({config_of(name)['num_attention_heads']} query and " in line


@pytest.mark.parametrize("name", RULE)
def test_a_model_without_a_preset_follows_the_rule_and_says_so(
    launch: Launch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    server_args = launch(config_of(name) | {"quantization_config": None})
    with caplog.at_level("WARNING", logger="lim_sglang"):
        _, plan = resolve(server_args, model_config(server_args), warn=True)
    depth, layers = RULE[name]
    assert len(plan.roles) == depth
    assert list(plan.select_layers) == layers
    assert plan.count(LayerRole.SPARSE) == depth - 4
    (record,) = [record for record in caplog.records if record.name.startswith("lim_sglang")]
    said = f"select layers 2,{layers[1]} follow a rule of thumb, and their choice matters for accuracy"
    assert said in record.getMessage()
    assert "set them with --lim-select-layers" in record.getMessage()
