"""What SGLang's parser makes of the ``--lim-*`` flags, and the one line for what it cannot read."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from lim_sglang.host.launch import FLAGS_ATTRIBUTE, resolve
from lim_sglang.host.model import model_config
from lim_sglang.tools.servers.ports import free_port

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 14,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    from sglang.srt.plugins import load_plugins

    load_plugins()


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    from sglang.srt.server_args import ServerArgs

    made = argparse.ArgumentParser(prog="sglang serve")
    ServerArgs.add_cli_args(made)
    return made


def parse(folder: Path, *words: str) -> Any:
    """SGLang's launch options, through its own parser and its merging of ``--config``."""
    from sglang.srt.server_args import prepare_server_args

    (folder / "config.json").write_text(json.dumps(LLAMA))
    fixed = ["--model-path", str(folder), "--load-format", "dummy", "--skip-tokenizer-init", "--device", "cpu"]
    return prepare_server_args([*words, *fixed, "--attention-backend", "lim", "--port", str(free_port())])


def flags_of(folder: Path, *words: str) -> dict[str, object]:
    flags: dict[str, object] = getattr(parse(folder, *words), FLAGS_ATTRIBUTE)
    return flags


@pytest.mark.parametrize(
    "words", [["2,12"], ["2", "12"], ["2,", "12"], ["2, 12"], ["2 12"]], ids=["comma", "words", "both", "one", "space"]
)
def test_layers_may_be_one_word_or_several(tmp_path: Path, words: list[str]) -> None:
    flags = flags_of(tmp_path, "--lim-select-layers", *words, "--lim-budget", "64")
    assert flags == {"budget": 64, "select_layers": (2, 12)}


@pytest.mark.parametrize(
    ("yaml", "flags"),
    [
        ("lim-select-layers: [2, 12]", {"select_layers": (2, 12)}),
        ("lim-select-layers:\n  - 2\n  - 12\nlim-budget: 64", {"budget": 64, "select_layers": (2, 12)}),
        ("lim-select-layers: 2,12\nlim-recency-ratio: 0.5", {"recency_ratio": 0.5, "select_layers": (2, 12)}),
        ("lim-select-layers: auto\nlim-sink-tokens: 2", {"sink_tokens": 2, "select_layers": "auto"}),
    ],
    ids=["list", "block", "text", "auto"],
)
def test_a_yaml_file_gives_the_same(tmp_path: Path, yaml: str, flags: dict[str, object]) -> None:
    (tmp_path / "server.yaml").write_text(yaml)
    assert flags_of(tmp_path, "--config", str(tmp_path / "server.yaml")) == flags


def test_the_command_line_wins_over_the_yaml_file(tmp_path: Path) -> None:
    (tmp_path / "server.yaml").write_text("lim-select-layers: [2, 12]")
    flags = flags_of(tmp_path, "--config", str(tmp_path / "server.yaml"), "--lim-select-layers", "3", "5")
    assert flags == {"select_layers": (3, 5)}


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


PLAIN = "sglang serve: error: "
OURS = "lim-sglang: error: "


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["foo"], f"{PLAIN}unrecognized arguments: foo"),
        (["--lim-budget", "64", "12", "13"], f"{PLAIN}unrecognized arguments: 12 13"),
        (["--lim-budget", "64", "-1"], f"{PLAIN}unrecognized arguments: -1"),
        (["--lim-budgt", "64"], f"{OURS}unknown flag --lim-budgt; did you mean --lim-budget?"),
        (["--lim-budgt=64", "foo"], f"{OURS}unknown flag --lim-budgt; did you mean --lim-budget?"),
        (["12", "--no-such-thing-at-all"], f"{OURS}unknown flag --no-such-thing-at-all; see --help for the flags"),
        (["--lim-budget"], f"{OURS}argument --lim-budget: expected one argument"),
        (["--lim-select-layers", "-1,2"], f"{OURS}argument --lim-select-layers: expected at least one argument"),
        (["--lim-s", "64"], f"{OURS}ambiguous option: --lim-s could match --lim-sink-tokens, "),
    ],
    ids=["stray", "numbers", "negative", "typo", "typo=", "unknown", "no value", "negative layer", "ambiguous"],
)
def test_what_cannot_be_parsed_is_one_line(
    parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--model-path", "x", *words])
    assert caught.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(line)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--page-size", "two"], "argument --page-size: invalid int value: 'two'"),
        (["--limit-mm-data-per-request"], "argument --limit-mm-data-per-request: expected one argument"),
    ],
    ids=["a value", "a name like ours"],
)
def test_sglangs_own_flags_keep_sglangs_answer(
    parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args(["--model-path", "x", *words])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("usage: sglang serve")
    assert lines[-1].startswith(PLAIN)
    assert said in lines[-1]
