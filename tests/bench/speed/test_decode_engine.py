"""Dense and lim side by side: what a row says of arms that have run, and the gate before its speed."""

from __future__ import annotations

import argparse
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from bench.driver import read_rows
from bench.speed import decode_engine
from bench.speed.arms import CONFIGS, config_of, default_model, engine, with_layers
from bench.speed.byte_bound import attending_layers, text_config
from bench.speed.decode_engine import bounds, collective_share, compare_shape, parse, save
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
    usual |= {"dense_backend": None, "decode_only": False}
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


@pytest.mark.parametrize("other", [{"dense_backend": "auto"}, {"decode_only": True}])
def test_arms_that_compute_differently_need_not_agree(model: Path, other: dict[str, Any]) -> None:
    row = row_of(model, WITHIN, SAME, OTHER, **other)
    assert (row["speedup"], row["same_tokens"]) == (2.0, "1/2")


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


def test_a_row_tells_the_bytes_of_what_ran(tmp_path: Path) -> None:
    """Qwen3.5-27B with 32 of 64 layers: 8 attend, of which lim has 5 read 256 tokens in place of 64,008."""
    (tmp_path / "config.json").write_bytes((CONFIGS / "Qwen3.5-27B.json").read_bytes())
    arms = arms_of(64_000, SAME, SAME)
    for run in (*arms["dense"], *arms["lim"]):
        run |= {"copy_tb_s": 4.0, "memory_mib": 100, "backends": ["fa3", "fa3"]}
    row = compare_shape(arguments(tmp_path, device="cuda", layers=32), arms, 2, 64_000)
    saved_gb = 2 * 5 * (64_008 - 256) * 2 * 4 * 256 * 2 / 1e9
    assert (row["layers"], row["dense_backend"], row["copy_tb_s"]) == ("32 of 64", "fa3", 4.0)
    assert row["dense_gb"] - row["lim_gb"] == pytest.approx(saved_gb, abs=0.002)
    assert row["dense_bound_ms"] == pytest.approx(row["dense_gb"] / 4.0, abs=0.002)
    assert row["saved_share"] == pytest.approx(2.0 / (saved_gb / 4.0), abs=0.002)
    assert row["byte_bound_share"] == pytest.approx(row["lim_bound_ms"] / 2.0, abs=0.002)


def test_nothing_is_saved_within_the_budget() -> None:
    assert bounds((8_000_000_000, 8_000_000_000), 4.0, 2.5, 2.5)["saved_share"] is None


@pytest.mark.parametrize("name", ["Qwen3-8B", "Qwen3-Next-80B-A3B", "Qwen3.5-35B-A3B", "MiniMax-M2"])
def test_fewer_layers_are_the_first_ones_and_sglang_reads_them(name: str, tmp_path: Path) -> None:
    from sglang.srt.configs.hybrid_arch import hybrid_gdn_config
    from sglang.srt.configs.model_config import ModelConfig

    config = with_layers(json.loads((CONFIGS / f"{name}.json").read_text()), 20)
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = ModelConfig(model_path=str(tmp_path), enable_multimodal=False)
    assert found.num_hidden_layers == 20
    if (hybrid := hybrid_gdn_config(found)) is not None:
        assert hybrid.full_attention_layer_ids == [3, 7, 11, 15, 19] == list(attending_layers(text_config(config)))
    kinds = getattr(found.hf_text_config, "layer_types", None) or getattr(found.hf_text_config, "attn_type_list", None)
    assert kinds is None or len(kinds) == 20


@pytest.fixture
def options_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What SGLang's engine is started with for an arm, on a GPU."""
    import sglang
    from sglang.srt.server_args import ServerArgs

    given: dict[str, Any] = {}

    class Engine:
        def __init__(self, **options: Any) -> None:
            assert options.keys() <= inspect.signature(ServerArgs).parameters.keys()
            given.update(options)

        def shutdown(self) -> None: ...

    monkeypatch.setattr(sglang, "Engine", Engine)
    monkeypatch.setenv("SGLANG_LIM_CONFIG", "")
    monkeypatch.chdir(tmp_path)

    def of(name: str, arm: str, max_batch: int = 8, **more: Any) -> dict[str, Any]:
        given.clear()
        folder = default_model(argparse.Namespace(model=name, device="cuda"), argparse.ArgumentParser())
        with engine(arguments(Path(folder), device="cuda", arm=arm, **more), max_batch, 64_400):
            return dict(given)

    return of


def test_dense_is_flashinfer_or_what_was_asked_for(options_of: Any) -> None:
    assert options_of("Qwen3-8B", "dense")["attention_backend"] == "flashinfer"
    assert options_of("Qwen3-8B", "dense", dense_backend="fa3")["attention_backend"] == "fa3"
    assert not any("attention_backend" in name for name in options_of("Qwen3-8B", "dense", dense_backend="auto"))
    assert options_of("Qwen3-8B", "lim", dense_backend="auto")["attention_backend"] == "lim"


def test_lim_decodes_alone_where_asked(options_of: Any) -> None:
    found = options_of("Qwen3-8B", "lim", decode_only=True)
    assert (found["decode_attention_backend"], "attention_backend" in found) == ("lim", False)
    assert options_of("Qwen3-8B", "dense", decode_only=True)["attention_backend"] == "flashinfer"


HYBRID_OPTIONS = {"max_running_requests", "max_mamba_cache_size", "enable_multimodal"}


def test_a_hybrid_has_room_for_its_states_and_no_images(options_of: Any) -> None:
    """SGLang wants five states for each request that runs."""
    assert not HYBRID_OPTIONS & options_of("Qwen3-8B", "dense").keys()
    few, many = (options_of("Qwen3.5-27B", "lim", batch) for batch in (2, 32))
    assert (few["max_running_requests"], few["max_mamba_cache_size"], few["enable_multimodal"]) == (2, 64, False)
    assert (many["max_running_requests"], many["max_mamba_cache_size"]) == (32, 256)
    spread = options_of("Qwen3-Next-80B-A3B", "dense", tp=4, dp_attention=True)
    assert (spread["max_running_requests"], spread["max_mamba_cache_size"]) == (32, 256)
    assert "enable_multimodal" not in spread


def test_fewer_layers_are_a_model_of_their_own(options_of: Any) -> None:
    found = options_of("Qwen3.5-27B", "lim", layers=32)
    assert config_of(found["model_path"])["text_config"]["num_hidden_layers"] == 32
    assert config_of("runs/models/Qwen3.5-27B")["text_config"]["num_hidden_layers"] == 64


def test_a_run_measures_dense_once_and_lim_at_every_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, str, int]] = []

    def start_arm(_module: str, request: dict[str, Any]) -> dict[str, Any]:
        started.append((request["arm"], request["label"], request["budget"]))
        ms = {"dense": 4.0, "lim": 2.0, "lim_512": 2.5}[request["label"]]
        return {"shapes": {"2x4000": {"ms": [ms], "tokens": SAME}}}

    monkeypatch.setattr(decode_engine, "start_arm", start_arm)
    (tmp_path / "config.json").write_bytes((CONFIGS / "Qwen3-8B.json").read_bytes())
    words = ["--model", str(tmp_path), "--device", "cpu", "--budget", "256", "--more-budgets", "512"]
    monkeypatch.setattr("sys.argv", ["decode_engine", *words, "--shapes", "2x4000", "--out", str(tmp_path)])
    decode_engine.main()
    assert started == [("dense", "dense", 256), ("lim", "lim", 256), ("lim", "lim_512", 512)]
    rows = read_rows(tmp_path / "decode_engine.csv")
    assert [(row["budget"], row["dense_ms"], row["speedup"]) for row in rows] == [
        ("256", "4.0", "2.0"),
        ("512", "4.0", "1.6"),
    ]
    assert list(json.loads((tmp_path / "decode_engine.json").read_text())["arms"]) == ["dense", "lim", "lim_512"]
