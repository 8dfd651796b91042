"""The command `lim-sglang calibrate`: from a model's folder to a configuration, and what mistakes cost."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lim_sglang.config import LimConfig, parse_config_json, resolve_config
from lim_sglang.tools.analysis.plan_search import FoundPlan, best_plan, best_plan_within
from lim_sglang.tools.analysis.recall import ReuseMeter
from lim_sglang.tools.calibrate import command as calibrate
from lim_sglang.tools.calibrate.command import plans_of_sizes, wanted_size
from lim_sglang.tools.calibrate.report import Calibration, layer_rows, plan_rows
from lim_sglang.tools.cli import main
from lim_sglang.tools.common import CommandError
from lim_sglang.tools.servers.embedded_model import ensure_model

from ..tiny_model import CONTEXT, HYBRID_LAYERS, NUM_LAYERS

SMALL = ("--context", 100, "--windows", 2, "--budget", 16)


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: object) -> int:
    return main(["calibrate", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that the command leaves with; exit code 1, nothing written, nothing on stdout."""
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    *_bar, line = captured.err.splitlines()
    assert line.startswith("lim-sglang: error: ")
    assert list(Path().glob("*.json")) == []
    return line


def written(path: str) -> LimConfig:
    """The file as SGLANG_LIM_CONFIG takes it; all keys are set."""
    text = Path(path).read_text()
    assert set(parse_config_json(text, "file")) == {"budget", "recency_ratio", "sink_tokens", "select_layers"}
    return resolve_config(None, None, text)


# From a folder to a configuration


def test_real_model_twice(capsys: pytest.CaptureFixture[str]) -> None:
    model = ensure_model(quiet=True)
    arguments = (model, "--context", 512, "--windows", 1, "--budget", 64, "--bytes", 0.134)
    assert run(*arguments) == 0
    shown = capsys.readouterr()
    assert run(*arguments, "--out", "again.json") == 0
    name = f"lim-{model.name}.json"
    assert Path(name).read_bytes() == Path("again.json").read_bytes()
    assert capsys.readouterr().out.replace("again.json", name) == shown.out

    config = written(name)
    assert (config.budget, config.recency_ratio, config.sink_tokens) == (64, 0.25, 4)
    assert isinstance(config.select_layers, tuple)
    layers = ", ".join(map(str, config.select_layers))
    full = config.select_layers[0] + len(config.select_layers)
    assert full <= 4
    assert f"Plan: select layers {layers}; {full} of 30 attending layers" in shown.out
    assert f'SGLANG_LIM_CONFIG="$(cat {name})" sglang serve --model-path {model} --attention-backend lim' in shown.out
    assert f"--lim-select-layers {layers.replace(' ', '')}\n" in shown.out
    assert "30/30" in shown.err
    (peak,) = re.fullmatch(r"Took \d+ s and at most (\d+\.\d) GiB of memory", shown.err.splitlines()[-1]).groups()
    assert 0.2 < float(peak) < 20


def test_plan_is_the_best_of_what_was_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's plan is the cheapest by the meter that it filled itself."""
    meters: list[ReuseMeter] = []
    measure = calibrate._measure
    monkeypatch.setattr(calibrate, "_measure", lambda *given: meters.append(measure(*given)) or meters[0])
    assert run(folder, *SMALL, "--bytes", 0.5, "--select", 2) == 0
    assert written("lim-tiny-llama.json").select_layers == best_plan(meters[0].error.tolist(), 2, 3).select_layers
    assert meters[0].error[0, 1] > 0


def test_a_hybrid_is_judged_by_the_layers_that_attend(
    hybrid_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    meters: list[ReuseMeter] = []
    measure = calibrate._measure
    monkeypatch.setattr(calibrate, "_measure", lambda *given: meters.append(measure(*given)) or meters[-1])
    assert run(hybrid_folder, *SMALL, "--bytes", 0.5) == 0
    shown = capsys.readouterr()
    costs = meters[0].error.tolist()
    assert len(costs) == len(HYBRID_LAYERS)
    assert sum(cost > 0 for row in costs for cost in row) == 6
    best = best_plan_within(costs, 2)
    select = written("lim-tiny-hybrid.json").select_layers
    assert select == tuple(HYBRID_LAYERS[layer] for layer in best.select_layers)
    assert f"Plan: select layers {', '.join(map(str, select))}; 2 of 4 attending layers (50.0%)" in shown.out
    assert re.findall(r"(\d+) \W+(?:DENSE|SELECT|SPARSE) ", shown.out) == [*map(str, HYBRID_LAYERS)]
    assert "8/8" in shown.err
    assert run(hybrid_folder, *SMALL, "--select", 4) == 0
    assert written("lim-tiny-hybrid.json").select_layers == HYBRID_LAYERS
    refusal = "lets 0 of 4 attending layers read everything: expected at least 0.25"
    Path("lim-tiny-hybrid.json").unlink()
    capsys.readouterr()
    assert refusal in refused(capsys, hybrid_folder, *SMALL, "--bytes", 0.2)


def test_numbers_reach_the_configuration(folder: Path) -> None:
    options = ("--recency-ratio", 0.5, "--sink-tokens", 2, "--select", 3, "--out", "c.json", "--dtype", "bfloat16")
    assert run(folder, *SMALL, *options) == 0
    config = written("c.json")
    assert (config.budget, config.recency_ratio, config.sink_tokens) == (16, 0.5, 2)
    assert len(config.select_layers) == 3


def test_own_text_decides(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other text, other figures; two files count as one text."""
    Path("a").write_text("one sentence and another one. " * 5)
    Path("b").write_text("".join(chr(33 + 7 * n % 90) for n in range(150)))
    outputs = []
    for files in (["a", "b"], ["b", "a"]):
        assert run(folder, "--text", *files, *SMALL) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] != outputs[1]


# How large a plan may be


@pytest.mark.parametrize(
    ("share", "selects", "layers", "expected"),
    [
        (None, None, 30, (4, None)),
        (None, "1", 30, (3, 1)),
        (None, "30", 30, (30, 30)),
        (None, None, 3, (3, None)),
        ("0.2", "2", 30, (6, 2)),
        ("0.0667", "2", 30, (2, 2)),
        ("0.29", None, 100, (29, None)),  # 0.29 * 100 is below 29
    ],
)
def test_wanted_size(share: str | None, selects: str | None, layers: int, expected: tuple[int, int | None]) -> None:
    assert wanted_size(share, selects, layers) == expected


@pytest.mark.parametrize(("share", "selects", "smallest"), [("0.03", None, "0.0334"), ("0.1", "4", "0.1334")])
def test_the_smallest_share_that_is_named_works(share: str, selects: str | None, smallest: str) -> None:
    with pytest.raises(CommandError, match=f"--bytes {share} .* expected at least {smallest}"):
        wanted_size(share, selects, 30)
    assert wanted_size(smallest, selects, 30)[0] == int(selects or 1)


def test_plans_of_sizes_have_at_most_two_dense_layers() -> None:
    costs = torch.rand(12, 12, generator=torch.Generator().manual_seed(0)).tolist()
    plans = plans_of_sizes(costs)
    assert [len(plan.select_layers) for plan in plans] == [2, 3, 4, 6]
    assert max(plan.select_layers[0] for plan in plans) <= 2
    assert [len(plan.select_layers) for plan in plans_of_sizes([row[:3] for row in costs[:3]])] == [2, 3]


# What is shown

RECALL = [[0.0 if j <= i else round(1 - 0.1 * (j - i), 1) for j in range(5)] for i in range(5)]
COSTS = [[1 - value for value in row] for row in RECALL]
PLAN = FoundPlan((1, 3), COSTS[1][2] + COSTS[3][4])
SHOWN = Calibration(
    folder=Path("m"),
    config=LimConfig(budget=100, select_layers=(1, 3)),
    layers=tuple(range(5)),
    plan=PLAN,
    others=(PLAN, FoundPlan((2,), 0.3), FoundPlan((4,), 0.0)),
    recall=RECALL,
    context=1000,
    windows=1,
    samples=48,
)


def test_rows_by_layer() -> None:
    assert layer_rows(SHOWN) == [
        ("0", "DENSE", "all", ""),
        ("1", "SELECT", "all", ""),
        ("2", "SPARSE", "set of 1", "0.900"),
        ("3", "SELECT", "all", ""),
        ("4", "SPARSE", "set of 3", "0.900"),
    ]


def test_rows_of_a_hybrid_are_the_attending_layers() -> None:
    hybrid = replace(SHOWN, layers=(3, 7, 11, 15, 19))
    assert layer_rows(hybrid) == [
        ("3", "DENSE", "all", ""),
        ("7", "SELECT", "all", ""),
        ("11", "SPARSE", "set of 7", "0.900"),
        ("15", "SELECT", "all", ""),
        ("19", "SPARSE", "set of 15", "0.900"),
    ]
    assert [row[1:4] for row in plan_rows(hybrid)] == [
        ("7, 15", "3 of 5", "64.0%"),
        ("11", "3 of 5", "64.0%"),
        ("19", "5 of 5", "100.0%"),
    ]


def test_rows_by_plan() -> None:
    """Bytes by hand: (3 * 1000 + 2 * 100) / 5000, (3 * 1000 + 2 * 100) / 5000, all."""
    assert plan_rows(SHOWN) == [
        ("2", "1, 3", "3 of 5", "64.0%", "0.900", "0.20000"),
        ("1", "2", "3 of 5", "64.0%", "0.850", "0.30000"),
        ("1", "4", "5 of 5", "100.0%", "1.000", "0.00000"),
    ]


# Mistakes

NUMBERS: dict[str, tuple[tuple[object, ...], str]] = {
    "budget": (("--budget", "many"), "--budget: budget='many' is not allowed: expected an integer from 1"),
    "context-high": (("--context", CONTEXT + 1), f"--context {CONTEXT + 1}: expected an integer from 48 to {CONTEXT}"),
    "windows": (("--windows", 0), "--windows 0: expected an integer from 1 to 10000"),
    "bytes": (("--bytes", "half"), "--bytes half: expected a number above 0 and up to 1"),
    "bytes-high": (("--bytes", 1.1), "--bytes 1.1: expected a number above 0 and up to 1"),
    "select": (("--select", "two"), f"--select two: expected an integer from 1 to {NUM_LAYERS}"),
    "budget-holds-all": (("--context", 64, "--budget", 64), "--budget 64 with --context 64: expected a context above"),
    "dtype": (("--dtype", "int8"), "--dtype int8: expected one of auto, float32, bfloat16, float16"),
    "device": (("--device", "tpu"), "--device tpu cannot be used: expected cpu, cuda or cuda:N"),
    "device-index": (("--device", "cuda:99"), "--device cuda:99 cannot be used"),
    "out-in-no-folder": (("--out", "no/c.json"), "--out no/c.json: there is no folder no"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_mistaken_argument(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, expected = NUMBERS[case]
    assert expected in refused(capsys, folder, *arguments)


def test_no_tokenizer(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(SystemExit, match="1"):
        run(tmp_path, *SMALL)
    assert f"{tmp_path}: its tokenizer cannot be read" in capsys.readouterr().err.splitlines()[-1]


def test_attention_that_is_not_finite(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(ReuseMeter, "error", property(lambda self: torch.full((2, 2), float("nan"))))
    assert "attention is not finite in torch.float32" in refused(capsys, folder, *SMALL)
