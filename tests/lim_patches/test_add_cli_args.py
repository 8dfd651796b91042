"""What SGLang's parser makes of the ``--lim-*`` flags, by words and by YAML, and where their values go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lim_sglang.host.launch import FLAGS_ATTRIBUTE, resolve
from lim_sglang.host.model import model_config
from lim_sglang.tools.servers.ports import free_port

from ..lim_sglang.host.tiny_llama import LLAMA


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    from sglang.srt.plugins import load_plugins

    load_plugins()


def parse(folder: Path, *words: str) -> Any:
    """SGLang's launch options, through its own parser and its merging of ``--config``."""
    from sglang.srt.server_args import prepare_server_args

    (folder / "config.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": 14}))
    fixed = ["--model-path", str(folder), "--load-format", "dummy", "--skip-tokenizer-init", "--device", "cpu"]
    return prepare_server_args([*words, *fixed, "--attention-backend", "lim", "--port", str(free_port())])


def flags_of(folder: Path, *words: str) -> Any:
    return getattr(parse(folder, *words), FLAGS_ATTRIBUTE)


@pytest.mark.parametrize("words", [["2,12"], ["2", "12"], ["2, 12"]], ids=["comma", "words", "one"])
def test_layers_may_be_one_word_or_several(tmp_path: Path, words: list[str]) -> None:
    flags = flags_of(tmp_path, "--lim-select-layers", *words, "--lim-budget", "64")
    assert flags == {"budget": 64, "select_layers": (2, 12)}


@pytest.mark.parametrize("layers", ["\n  - 2\n  - 12", " 2,12"], ids=["block", "text"])
def test_a_yaml_file_gives_the_same(tmp_path: Path, layers: str) -> None:
    (tmp_path / "server.yaml").write_text(f"lim-select-layers:{layers}\nlim-recency-ratio: 0.5")
    flags = flags_of(tmp_path, "--config", str(tmp_path / "server.yaml"))
    assert flags == {"recency_ratio": 0.5, "select_layers": (2, 12)}


def test_a_copy_of_the_declared_fields_keeps_the_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``Engine(**asdict(server_args))``, as SGLang's offline benchmark calls it."""
    from sglang.srt.server_args import ServerArgs

    monkeypatch.setenv("SGLANG_LIM_CONFIG", '{"budget": 100, "sink_tokens": 3}')
    overrides = json.dumps({"lim_config": {"budget": 200, "recency_ratio": 0.5}, "rope_theta": 5000})
    flags = ["--lim-budget", "64", "--lim-select-layers", "3", "5"]
    parsed = parse(tmp_path, *flags, "--json-model-override-args", overrides)
    copy = ServerArgs(**{field: getattr(parsed, field) for field in ("model_path", "json_model_override_args")})
    model = model_config(parsed)
    assert not hasattr(copy, FLAGS_ATTRIBUTE)
    for options in (parsed, copy):
        config, plan = resolve(options, model)
        assert (config.budget, config.recency_ratio, config.sink_tokens) == (64, 0.5, 3)
        assert plan.select_layers == (3, 5)
    assert model.hf_config.rope_theta == 5000
