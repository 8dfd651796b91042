"""The lossless mode's bench: imposed acceptance, the measured shares, and rows from arms made by hand."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.driver import read_rows
from bench.speed import imposed_acceptance, lossless, report
from bench.speed.arms import WARM_STEPS
from bench.speed.imposed_acceptance import imposed, run_length
from lim_sglang.speculative.sampling import Drafts, VerifyResult


@pytest.mark.parametrize("share", [0.0, 0.8, 1.0])
def test_few_rounds_have_the_mean_of_many(share: float) -> None:
    lengths = [run_length(share, 6) for _ in range(60)]
    assert set(lengths) <= set(range(7))
    assert sum(lengths) / 60 == pytest.approx(sum(share**n for n in range(1, 7)), abs=0.15)


def test_only_the_number_of_accepted_drafts_is_imposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "share"
    monkeypatch.setenv(imposed_acceptance.FILE, str(file))
    found = VerifyResult(torch.arange(8).view(2, 4), torch.tensor([0, 2]))
    verify = imposed(lambda *_: VerifyResult(found.tokens.clone(), found.num_accepted.clone()))
    drafts = Drafts(torch.zeros(2, 3, dtype=torch.int64), None)
    for share, accepted in (("1", [3, 3]), ("0", [0, 0]), ("", [0, 2])):
        file.write_text(share)
        verdict = verify(None, drafts, None)
        assert verdict.num_accepted.tolist() == accepted
        assert torch.equal(verdict.tokens, found.tokens)
    file.write_text("1")
    assert verify(None, None, None).num_accepted.tolist() == [0, 2], "a step without drafts stays as it is"


def test_shares_are_those_measured_at_the_budgets_part_of_the_context() -> None:
    """2,048 of 32,000 tokens are 6.4 %, as 128 of 2,000; by hand from the same file."""
    chosen = {"budget": "128", "context": "2000", "k": "6", "drafts": "lim steps", "temperature": "0"}
    greedy = [float(row["accepted"]) for row in read_rows(lossless.ACCEPTANCE) if chosen.items() <= row.items()]
    assert len(greedy) == 10
    share = lossless.shares_of("lim steps", 2048, 32_000)["greedy"]
    assert sum(share**n for n in range(1, 7)) == pytest.approx(sum(greedy) / 10, abs=0.01)


def arms(tokens: list[list[int]]) -> dict[str, Any]:
    rounds = {"request_rounds": 10, "drafted_tokens": 50, "accepted_tokens": 40}
    none = dict.fromkeys(rounds, 0)
    dense = {"ms": 20.0, "spread_ms": 0.1, "tokens": [[1, 2], [3, 4]]}
    low = {"share": 0.5, "ms": 16.0, "spread_ms": 0.2, "rounds": none, "tokens": tokens}
    high = {"share": 0.9, "ms": 12.5, "spread_ms": 0.2, "rounds": rounds}
    return {
        "dense": {"gpu": "G", "memory_mib": 100, "rows": [[dense]]},
        "lim": {"memory_mib": 110, "rows": [[dense | {"ms": 10.0}]]},
        "lossless": {"memory_mib": 130, "draft_weights": "model", "rows": [[low, high]]},
    }


def arguments(context: int) -> argparse.Namespace:
    return argparse.Namespace(
        model="folder/Qwen3-8B", tp=1, shapes=[(2, context)], budget=2048, tokens=384, draft_weights="model"
    )


def test_a_row_per_share() -> None:
    first, second = lossless.compare(arguments(32_000), arms([[1, 2], [3, 5]]))
    assert set(first) == set(lossless.COLUMNS)
    assert (first["speedup"], second["speedup"], first["speedup_of_lim"]) == (1.25, 1.6, 2.0)
    assert (second["drafts"], second["accepted"], first["drafts"]) == (5.0, 4.0, 0.0)
    assert (first["same_tokens"], first["extra_mib"], first["gpu"], first["model"]) == ("1/2", 30, "G", "Qwen3-8B")


WITHIN = 2048 - 384 - WARM_STEPS  # the longest context whose requests never outgrow the budget


@pytest.mark.parametrize(("context", "speeds"), [(WITHIN, ["wrong tokens"] * 2), (WITHIN + 1, [1.25, 1.6])])
def test_no_speed_for_wrong_tokens_within_the_budget(context: int, speeds: list[object]) -> None:
    rows = lossless.compare(arguments(context), arms([[1, 2], [3, 5]]))
    assert [row["speedup"] for row in rows] == speeds


@pytest.mark.parametrize(("equal", "speed"), [(3, 1.25), (2, "wrong tokens")])
def test_one_request_in_four_may_round_otherwise_with_copies(equal: int, speed: object) -> None:
    found = arms([[1, 2]] * equal + [[5, 6]] * (4 - equal))
    found["dense"]["rows"][0][0]["tokens"] = [[1, 2]] * 4
    found["lossless"]["draft_weights"] = "int8"
    assert lossless.compare(arguments(WITHIN), found)[0]["speedup"] == speed
    found["lossless"]["draft_weights"] = "model"
    assert lossless.compare(arguments(WITHIN), found)[0]["speedup"] == "wrong tokens"


@pytest.mark.parametrize("arm", lossless.ARMS)
@pytest.mark.parametrize("measured", [{"ms": -0.05}, {"spread_ms": 20.0}], ids=["no time", "spread"])
def test_no_speed_where_an_arm_is_unsteady(arm: str, measured: dict[str, float]) -> None:
    found = arms([[1, 2], [3, 4]])
    found[arm]["rows"][0][-1] |= measured
    row = lossless.compare(arguments(32_000), found)[-1]
    assert (row["speedup"], row["speedup_of_lim"]) == ("unsteady", None)


def test_without_lim_there_is_still_a_speed() -> None:
    found = arms([[1, 2], [3, 4]])
    del found["lim"]
    row = lossless.compare(arguments(32_000), found)[-1]
    assert (row["speedup"], row["lim_ms"], row["speedup_of_lim"]) == (1.6, None, None)


def test_the_plot_leaves_out_other_drafts_and_the_tokens_table(tmp_path: Path) -> None:
    (tmp_path / "lossless.csv").write_text("speedup,share\n1.5,0.9\nwrong tokens,0.5\n")
    (tmp_path / "lossless_drafts.csv").write_text("speedup,share,drafts_by_set\n1.4,0.9,16\n1.3,0.8,1\n")
    (tmp_path / "lossless_tokens.csv").write_text("equal,tokens\n3,3\n")
    assert [row["speedup"] for row in report.lossless_rows(tmp_path)] == ["1.5", "1.3"]
