"""Which config is judged early: the one that SGLang itself will read, by all options that decide about it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lim_sglang.host.launch import check_launch, resolve
from lim_sglang.host.model import model_config

from .conftest import ErrorLine, Prepare
from .test_refusals import GEMMA
from .tiny_llama import LLAMA

SEALED = "not JSON: sealed by its owner"


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A model's folder whose config.json cannot be read."""
    (tmp_path / "config.json").write_text(SEALED)
    return tmp_path


def decrypted(folder: Path, model: dict[str, Any]) -> list[str]:
    path = folder / f"decrypted-{len(model)}.json"  # SGLang caches what it read by name
    path.write_text(json.dumps(LLAMA | model))
    return ["--decrypted-config-file", str(path)]


def test_a_decrypted_config_is_the_one_that_is_judged(sealed: Path, prepare: Prepare, error_line: ErrorLine) -> None:
    server_args = prepare(None, *decrypted(sealed, {"num_hidden_layers": 9}))
    check_launch(server_args)
    _, plan = resolve(server_args, model_config(server_args))
    assert len(plan.roles) == 9
    assert "(Gemma2ForCausalLM) does not work with lim" in error_line(
        prepare, None, *decrypted(sealed, GEMMA | {"attn_logit_softcapping": 5.0, "attention_chunk_size": 64})
    )


def test_a_config_by_a_parser_of_its_own_is_judged(sealed: Path, prepare: Prepare, error_line: ErrorLine) -> None:
    from sglang.srt.configs import model_config_parser_registry as registry
    from transformers import LlamaConfig

    layers, idle = 9, [3, 4]

    class Unsealing(registry.ModelConfigParserBase):
        def parse(self, model: Any, *_args: Any, **_options: Any) -> Any:
            assert (Path(model) / "config.json").read_text() == SEALED
            blocks = [SimpleNamespace(attention=SimpleNamespace(no_op=layer in idle)) for layer in range(layers)]
            config = LlamaConfig(**LLAMA | {"num_hidden_layers": layers})
            config.block_configs = blocks  # as of a Nemotron-NAS model
            return config

    registry.register_model_config_parser(f"unsealing-{sealed.name}")(Unsealing)
    flags = "--model-config-parser", f"unsealing-{sealed.name}"
    server_args = prepare(None, *flags, "--lim-select-layers", "8")
    check_launch(server_args)
    assert "select_layers=[9] is not allowed for a model of 9 layers" in error_line(
        prepare, None, *flags, "--lim-select-layers", "9"
    )
    assert error_line(prepare, None, *flags, "--lim-select-layers", "2,4") == (
        "lim-sglang: error: select_layers=[2, 4] is not allowed: layer 4 of this model does not attend to "
        "all tokens, so it cannot select, expected layers among 0 to 2, 5 to 8; for example --lim-select-layers 2,5"
    )


def test_a_config_that_nobody_can_read_is_one_line(sealed: Path, prepare: Prepare, error_line: ErrorLine) -> None:
    flags = decrypted(sealed, {})
    Path(flags[1]).write_text(SEALED)
    for words, checked in ((flags, flags[1]), ([], "its config.json")):
        line = error_line(prepare, None, *words)
        assert line.startswith(f"lim-sglang: error: {sealed} holds no usable model config: ")
        assert line.endswith(f"check {checked}")


def test_what_sglang_says_about_its_options_is_left_to_it(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The config can be read; that SGLang refuses this context length is no fault of the folder."""
    monkeypatch.delenv("SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN", raising=False)
    with pytest.raises(ValueError, match="context_length"):
        model_config(prepare(LLAMA, "--context-length", "1000000"))
    assert "lim-sglang: error" not in capsys.readouterr().err
