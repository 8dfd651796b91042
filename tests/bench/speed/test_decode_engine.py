"""Dense and lim side by side: what a row says of arms that have run, and the gate before its speed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from bench.speed.arms import CONFIGS, default_model
from bench.speed.decode_engine import collective_share, compare_shape, parse, save
from bench.speed.engine_arm import kind

STEPS, BUDGET = 16, 256
WITHIN = BUDGET - STEPS - 8  # the longest context whose requests never outgrow the budget


def arms_of(context: int, dense: list[list[int]], *lim: list[list[int]]) -> dict[str, list[dict[str, Any]]]:
    """A round of engines for each of lim's tokens; lim takes half of dense's time."""
    shape = f"2x{context}"
    return {
        "dense": [{"shapes": {shape: {"ms": [4.0, 4.0, 5.0], "tokens": dense}}} for _ in lim],
        "lim": [{"shapes": {shape: {"ms": [2.0, 1.0, 2.0], "tokens": tokens}}} for tokens in lim],
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_bytes((CONFIGS / "Qwen3-235B-A22B.json").read_bytes())
    return tmp_path


def arguments(model: Path, **more: Any) -> argparse.Namespace:
    usual = {"device": "cpu", "tp": 1, "budget": BUDGET, "steps": STEPS, "dp_attention": False, "layers": None}
    return argparse.Namespace(model=str(model), **(usual | more))


def row_of(model: Path, context: int, *tokens: list[list[int]], **more: Any) -> dict[str, Any]:
    return compare_shape(arguments(model, **more), arms_of(context, *tokens), 2, context)


SAME, OTHER = [[1, 2], [3, 4]], [[1, 2], [3, 5]]


@pytest.mark.parametrize(("lim", "same"), [([OTHER], "1/2"), ([SAME, OTHER], "3/4")], ids=["a round", "two rounds"])
def test_no_speed_where_tokens_within_the_budget_differ(model: Path, lim: list[Any], same: str) -> None:
    row = row_of(model, WITHIN, SAME, *lim)
    assert (row["speedup"], row["same_tokens"]) == ("wrong tokens", same)
    assert not {"dense_tok_s", "lim_tok_s"} & row.keys()


@pytest.mark.parametrize(("arm", "number"), [("dense", 0), ("dense", 1), ("lim", 0), ("lim", 1)])
def test_no_speed_where_a_step_of_any_round_takes_no_time(model: Path, arm: str, number: int) -> None:
    arms = arms_of(WITHIN, SAME, SAME, SAME)
    arms[arm][number]["shapes"][f"2x{WITHIN}"]["ms"][1] = -0.05
    assert compare_shape(arguments(model), arms, 2, WITHIN)["speedup"] == "unsteady"


@pytest.mark.parametrize(("context", "tokens"), [(WITHIN, SAME), (WITHIN + 1, OTHER)])
def test_the_speed_of_equal_tokens_or_beyond_the_budget(model: Path, context: int, tokens: list[list[int]]) -> None:
    row = row_of(model, context, SAME, tokens)
    assert (row["dense_ms"], row["lim_ms"], row["speedup"]) == (4.0, 2.0, 2.0)
    assert (row["dense_spread_ms"], row["lim_spread_ms"]) == (1.0, 1.0)
    assert (row["dense_tok_s"], row["lim_tok_s"]) == (500.0, 1000.0)


def test_a_row_says_what_ran(model: Path) -> None:
    row = row_of(model, WITHIN, SAME, SAME, tp=4, layers=32)
    assert (row["tp"], row["dp"], row["layers"]) == (4, 1, "32 of 94")
    row = row_of(model, WITHIN, SAME, SAME, tp=4, dp_attention=True)
    assert (row["tp"], row["dp"], row["layers"]) == (4, 4, "94")


def test_a_note_is_kept_once_and_tokens_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["run.py", "--steps", "16", "--note", "other kernels", "--repeats", "2"])
    save(tmp_path / "facts.json", arms_of(100, SAME, SAME), "other kernels")
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["about"]["note"] == "other kernels"
    assert facts["about"]["command"].endswith("run.py --steps 16 --repeats 2")
    assert facts["arms"]["lim"] == [{"shapes": {"2x100": {"ms": [2.0, 1.0, 2.0]}}}]


def test_what_ranks_tell_each_other_is_counted_beyond_denses() -> None:
    """SGLang gathers logits in the dense step as well."""
    dense = {"profile": {"graph_us": 9000.0, "us_per_step": {"all-gather": 30.0}}}
    lim = {"profile": {"graph_us": 5000.0, "us_per_step": {"all-gather": 80.0}}}
    assert collective_share(dense, lim) == 0.01
    assert collective_share(dense, {"profile": {"graph_us": 5000.0, "us_per_step": {}}}) == -0.006
    assert collective_share({}, lim) is None
    assert kind("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", False) == "all-gather"
    assert kind("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", False) == "everything else"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--layers", "95"], "--layers 95: the model has 94; expected 1 to 94"),
        (["--dp-attention"], "--dp-attention: needs --tp of 2 or more"),
        (["--device", "cpu", "--tp", "2"], "--tp 2: expected 1 on a CPU"),
    ],
)
def test_what_cannot_run_is_one_line(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    monkeypatch.setattr("sys.argv", ["decode_engine", "--model", str(model), *options])
    with pytest.raises(SystemExit):
        parse()
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_model_by_name_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(default_model(argparse.Namespace(model="Qwen3-32B", device="cuda"), argparse.ArgumentParser()))
    assert folder.name == "Qwen3-32B"
    assert (folder / "config.json").read_text() == (CONFIGS / "Qwen3-32B.json").read_text()
    assert default_model(argparse.Namespace(model=str(folder), device="cuda"), argparse.ArgumentParser()) == str(folder)


def test_an_unknown_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        default_model(argparse.Namespace(model="Qwen3-9B", device="cuda"), argparse.ArgumentParser())
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--model Qwen3-9B: expected a folder with config.json, or one of GLM-4.5, " in line
    assert "Qwen3-8B" in line
