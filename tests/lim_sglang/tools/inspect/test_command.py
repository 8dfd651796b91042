"""The command `lim-sglang inspect`: where the prompt comes from, which model, and what mistakes cost."""

from __future__ import annotations

import io
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lim_sglang.config import LimConfig
from lim_sglang.tools.cli import main
from lim_sglang.tools.common import CommandError
from lim_sglang.tools.inspect.command import _check_attention, _setting

from ..tiny_model import CONTEXT, NUM_HEADS, embedded_data

PROMPT = "Two naïve 漢\n\tlines & <b>x</b>"


def run(*arguments: str | Path) -> int:
    return main(["inspect", *map(str, arguments)])


def tiny(folder: Path, out: Path) -> list[str | Path]:
    return ["--model", folder, "--budget", "24", "--sink-tokens", "2", "--max-tokens", "4", "--out", out]


def test_the_command_writes_the_page(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert run(PROMPT, "--select-layers", "1,4", *tiny(folder, out)) == 0
    printed = capsys.readouterr()
    data = embedded_data(out.read_text())
    assert "".join(data["tokens"]).startswith(f"<user>{PROMPT}<assistant>")
    assert data["promptTokens"] == len(PROMPT.encode()) + 2
    assert (data["model"], data["selectLayers"], data["source"]) == ("tiny-llama", [1, 4], "given")
    assert data["split"] == {"budget": 24, "selected": 18, "sinks": 2, "recent": 4}
    assert printed.out == f"{out}: {data['promptTokens']} prompt and 4 generated tokens, 6 select events\n"


@pytest.mark.parametrize("way", ["argument", "file", "stdin"])
def test_a_prompt_is_taken_as_it_is(way: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, file = tmp_path / "page.html", tmp_path / "prompt.txt"
    file.write_bytes(PROMPT.encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PROMPT.encode())))
    given = {"argument": [PROMPT], "file": ["--file", file], "stdin": ["-"]}[way]
    assert run(*given, "--raw", *tiny(folder, out)) == 0
    data = embedded_data(out.read_text())
    assert data["promptTokens"] == len(PROMPT.encode())
    assert "".join(data["tokens"][: data["promptTokens"]]) == PROMPT


def test_select_layers_by_rule_are_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("words", *tiny(folder, tmp_path / "page.html")) == 0
    warning = next(line for line in capsys.readouterr().err.splitlines() if "rule of thumb" in line)
    assert "tiny-llama: select layers 2,4" in warning
    assert warning.endswith("set them with --select-layers")


def test_a_hybrid_selects_in_the_layers_that_attend(
    hybrid_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it is published as an image-text model. By rule: the second attending layer, and the third of four."""
    out = tmp_path / "page.html"
    assert run(PROMPT, *tiny(hybrid_folder, out)) == 0
    assert "tiny-hybrid: select layers 5,8 follow a rule of thumb" in capsys.readouterr().err
    data = embedded_data(out.read_text())
    assert (data["selectLayers"], data["source"], data["numHeads"]) == ([5, 8], "rule", NUM_HEADS)
    assert (data["numLayers"], data["numAttending"], data["numSparse"]) == (12, 4, 1)
    assert [[len(event["set"]) for event in step] for step in data["steps"]] == [[24, 24]] * 3
    with pytest.raises(SystemExit, match=r"^1$"):
        run(PROMPT, "--select-layers", "4", *tiny(hybrid_folder, out))
    assert "layer 4 of this model does not attend to all tokens" in capsys.readouterr().err.splitlines()[-1]


def test_the_embedded_model_is_the_default(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert run("Why is the sky blue?", "--budget", "16", "--max-tokens", "3", "--out", out) == 0
    data = embedded_data(out.read_text())
    assert (data["model"], data["numHeads"], data["numLayers"]) == ("SmolLM2-135M-Instruct", 9, 30)
    assert (data["selectLayers"], data["source"]) == ([2, 17], "measured by this project")
    assert "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n" in "".join(data["tokens"])
    assert [[sum(event["set"][:1]), len(event["set"])] for step in data["steps"] for event in step] == [[0, 16]] * 4


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no-prompt": ([], "neither PROMPT nor --file is given"),
    "two-prompts": (["words", "--file", "x"], "PROMPT and --file are both given"),
    "empty-prompt": ([" \n"], "PROMPT: the prompt is empty"),
    "prompt-not-utf-8": (["caf\udce9"], "PROMPT: byte 3 is not UTF-8"),
    "missing-file": (["--file", "none.txt"], "--file none.txt: No such file"),
    "layer-beyond-the-model": (
        ["words", "--select-layers", "1,9"],
        "expected layers from 0 to 5; for example --select-layers 1",
    ),
    "no-token-to-generate": (["words", "--max-tokens", "0"], "--max-tokens 0: expected an integer from 1 on"),
    "beyond-the-context": (
        ["words", "--max-tokens", "600"],
        f"--max-tokens 600: expected at most {CONTEXT} together",
    ),
    "broken-model": (["words", "--model", "broken"], "--model broken cannot be read"),
    "out-full": (["words", "--max-tokens", "2", "--out", "/dev/full"], "--out /dev/full: No space left"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_costs_one_line(
    case: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken").mkdir()
    Path("broken/config.json").write_text("{")
    arguments, said = MISTAKES[case]
    with pytest.raises(SystemExit, match=r"^1$"):
        run("--model", folder, "--select-layers", "1,4", *arguments)  # layers by rule would be told in a second line
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lim-sglang: error: ")
    assert said in line
    assert not Path("inspect.html").exists()


HEADS = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "model_type": "some"}
ATTENTION: dict[str, tuple[bool, dict[str, Any]]] = {  # whether it is full attention over keys and values by head
    "plain": (True, HEADS | {"layer_types": ["full_attention"] * 2, "sliding_window": None}),
    "window-beyond-the-context": (True, HEADS | {"sliding_window": 4096, "max_position_embeddings": 4096}),
    "window-switched-off": (True, HEADS | {"sliding_window": 64, "use_sliding_window": False}),
    "window-in-no-layer": (True, HEADS | {"sliding_window": 64, "layer_types": ["full_attention"] * 2}),
    "one-window": (True, HEADS | {"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]}),
    "window-in-all-layers": (False, HEADS | {"sliding_window": 4096}),
    "linear-attention": (False, HEADS | {"layer_types": ["full_attention", "linear_attention"]}),
    "gated-delta-nets": (
        True,
        HEADS | {"layer_types": ["linear_attention", "full_attention"], "model_type": "qwen3_next"},
    ),
    "gated-delta-nets-only": (False, HEADS | {"layer_types": ["linear_attention"] * 2, "model_type": "qwen3_next"}),
    "capped-logits": (False, HEADS | {"attn_logit_softcapping": 50.0}),
    "state-space": (False, {"num_hidden_layers": 2, "model_type": "some"}),
}


@pytest.mark.parametrize(("is_full", "config"), ATTENTION.values(), ids=ATTENTION.keys())
def test_models_without_full_attention_are_refused(is_full: bool, config: dict[str, Any]) -> None:
    refusal = pytest.raises(CommandError, match=r"--model there \(\w+\) has layers that are not full attention")
    with nullcontext() if is_full else refusal:
        _check_attention(Path("there"), SimpleNamespace(**config))


@pytest.mark.parametrize(
    ("folder_name", "layers"), [("DeepSeek-R1-Distill-Llama-8B", (2, 12)), ("Llama-3-8B", (2, 13))], ids=str
)
def test_the_folders_name_tells_models_of_one_shape_apart(folder_name: str, layers: tuple[int, ...]) -> None:
    shape = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
    model = SimpleNamespace(**shape, architectures=["LlamaForCausalLM"])
    setting = _setting(Path("models") / folder_name, "name", model, LimConfig())
    assert setting.plan.select_layers == layers
