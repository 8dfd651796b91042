"""The comparison's own honesty: rivals as they are defined, the oracle below all, no cost where nothing is left out."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.driver import read_rows
from lim_kernels.select.budget import split_budget
from lim_sglang.layer_plan import LayerPlan
from lim_sglang.tools.analysis.model import LayerView
from lim_sglang.tools.analysis.policies import Dense
from lim_sglang.tools.servers.embedded_model import ensure_model

BENCH = Path(__file__).parents[3] / "bench"
STEPS, HEADS, KV_HEADS, TOKENS, HEAD_DIM = 5, 6, 2, 83, 8


@pytest.fixture
def view() -> LayerView:
    """A layer deep enough for every policy to be sparse in, random-normal."""
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(STEPS, HEADS, HEAD_DIM, generator=generator)
    keys = torch.randn(TOKENS, KV_HEADS, HEAD_DIM, generator=generator)
    scores = torch.einsum("qhd,nhd->qhn", queries, keys.repeat_interleave(HEADS // KV_HEADS, 1))
    lengths = torch.arange(TOKENS - STEPS + 1, TOKENS + 1)
    return LayerView(4, queries, keys, keys, scores, lengths, HEAD_DIM**-0.5)


def kept(mask: Tensor, step: int, head: int, length: int) -> list[int]:
    """Positions that a head of a step reads."""
    row = mask.expand(STEPS, HEADS, TOKENS)[step, head]
    assert not bool(row[length:].any()), "nothing behind a step may be read"
    return row.nonzero()[:, 0].tolist()


def test_streamingllm_keeps_sinks_and_the_latest(view: LayerView) -> None:
    from bench.fidelity.policies import StreamingLLM

    mask = StreamingLLM(20).mask(view)
    for step, length in enumerate(view.lengths.tolist()):
        assert kept(mask, step, 0, length) == [0, 1, 2, 3, *range(length - 16, length)]


def test_quest_takes_the_pages_with_the_highest_bounds(view: LayerView) -> None:
    from bench.fidelity.policies import Quest

    mask = Quest(32).mask(view)
    for step, length in enumerate(view.lengths.tolist()):
        for head in range(HEADS):
            query = view.queries[step, head]
            keys = view.keys[:length, head // (HEADS // KV_HEADS)]
            bounds = []
            for begin in range(0, length, 16):
                page = keys[begin : begin + 16]
                channels = torch.maximum(query * page.min(0).values, query * page.max(0).values)
                bounds.append(float(channels.sum()))
                assert bounds[-1] >= float((page @ query).max()) - 1e-5
            best = sorted(sorted(range(len(bounds)), key=lambda page: -bounds[page])[:2])
            expected = [t for page in best for t in range(16 * page, min(16 * page + 16, length))]
            assert kept(mask, step, head, length) == expected


def test_heads_keep_their_own_best(view: LayerView) -> None:
    """TidalDecode's and the oracle's sets; without unification, beside sinks and window."""
    from bench.fidelity.policies import Oracle, tidal_decode, without_unification

    split = split_budget(16, 0.25, 1)
    plan = LayerPlan.from_select_layers(6, (4,))
    masks = (
        Oracle(LayerPlan.from_select_layers(6, (2,)), 16).mask(view),
        reuse(tidal_decode(plan, 16), view),
        reuse(without_unification(plan, split), view),
    )
    for step, length in enumerate(view.lengths.tolist()):
        for head in range(HEADS):
            order = view.scores[step, head, :length].argsort(descending=True).tolist()
            assert kept(masks[0], step, head, length) == kept(masks[1], step, head, length) == sorted(order[:16])
            fixed = [0, *range(length - 3, length)]
            own = [t for t in order if t not in fixed][:12]
            assert kept(masks[2], step, head, length) == sorted([*fixed, *own])


def test_kascade_pools_the_weights_of_a_group(view: LayerView) -> None:
    from bench.fidelity.policies import kascade

    mask = reuse(kascade(LayerPlan.from_select_layers(6, (4,)), 16), view)
    group = HEADS // KV_HEADS
    for step, length in enumerate(view.lengths.tolist()):
        for kv_head in range(KV_HEADS):
            heads = range(kv_head * group, (kv_head + 1) * group)
            logits = view.scores[step, list(heads), :length] * view.scale
            best = logits.softmax(-1).mean(0).argsort(descending=True)[:16]
            for head in heads:
                assert kept(mask, step, head, length) == sorted(best.tolist())


def reuse(policy: Any, view: LayerView) -> Tensor:
    """The mask of the layer after the one that selects."""
    policy.mask(view)
    after = LayerView(5, *(getattr(view, name) for name in ("queries", "keys", "values", "scores", "lengths", "scale")))
    mask: Tensor = policy.mask(after)
    return mask


@pytest.fixture(scope="module")
def bench() -> Any:
    from bench.fidelity.__main__ import Bench
    from bench.fidelity.subject import Subject

    args = argparse.Namespace(steps=16, windows=1, texts=["worked steps"])
    return Bench(Subject.load(ensure_model(quiet=True)), args)


@pytest.fixture(scope="module")
def window(bench: Any) -> Any:
    return bench.window("worked steps", 600, 0)


def test_the_oracle_is_at_or_below_every_other_arm(bench: Any, window: Any) -> None:
    """A harness that lets a policy of the same budget beat the exact top tokens is broken."""
    from bench.fidelity.policies import policies

    kl = {arm.name: bench.compare(window, arm)["kl"] for arm, _ in policies(30, 96, bench.select_layers)}
    assert len(kl) == 11
    assert min(kl, key=lambda name: kl[name]) == "oracle"
    assert kl["oracle"] > 1e-4, "a budget of 96 of 600 tokens must cost something"


def test_nothing_left_out_costs_nothing(bench: Any, window: Any) -> None:
    from bench.fidelity.policies import policies

    for arm, _ in [*policies(30, 640, bench.select_layers), (Dense(), ())]:
        found = bench.compare(window, arm)
        assert abs(found["kl"]) < 1e-6, arm.name
        assert found["recall"] == pytest.approx(1.0, abs=1e-6), arm.name


def test_attended_tokens_are_counted(bench: Any, window: Any) -> None:
    from bench.fidelity.policies import policies

    attended = {arm.name: bench.compare(window, arm)["attended"] for arm, _ in policies(30, 96, bench.select_layers)}
    full = 600 + (16 + 1) / 2
    assert attended["oracle"] == attended["lessismore"] == pytest.approx((4 * full + 26 * 96) / 30)
    assert attended["streamingllm"] == pytest.approx((2 * full + 28 * 96) / 30)


@pytest.mark.parametrize("task", ["needle", "keys"])
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_a_fact_lies_where_it_should(bench: Any, task: str, depth: float) -> None:
    from bench.fidelity.texts import recall_prompt

    filler = bench.subject.ids("licences")
    prompt = recall_prompt(bench.tokenizer, filler, task, 1024, depth, seed=0)
    text = bench.tokenizer.decode(prompt.prefix)
    question, answer = bench.tokenizer.decode(prompt.question), bench.tokenizer.decode(prompt.answer).strip()
    name = question.split("code of ")[1].split("?")[0]
    assert len(prompt.prefix) == 1024
    assert text.count(f"The secret code of {name} is {answer}.") == 1
    assert text.count("The secret code of") == (1 if task == "needle" else 4)
    assert text.index(answer) / len(text) == pytest.approx(depth, abs=0.1)
    assert len(prompt.answer) > 1, "one token would be settled by the question's last step alone"


def test_a_run_takes_up_where_one_stopped(tmp_path: Path) -> None:
    from bench.fidelity.files import Table

    path = tmp_path / "rows.csv"
    with Table(path, ["name", "kl"], keys=1) as table:
        table.add(["a"], {"kl": 0.25})
        table.add(["b"], {"kl": 0.5})
    path.write_text(path.read_text()[:-4])  # cut off behind "b,"
    with Table(path, ["name", "kl"], keys=1) as table:
        assert table.has(["a"])
        assert not table.has(["c"])
        table.add(["c"], {"kl": 1.0})
    rows = list(csv.reader(path.open()))
    assert rows[0] == ["name", "kl"]
    assert ["a", "0.25"] in rows
    assert rows[-1] == ["c", "1"]
    assert all(len(row) == 2 and row[1] for row in rows), "no torn row is left"


def test_a_resumed_run_names_the_earlier_ones(tmp_path: Path) -> None:
    from bench.fidelity.files import write_facts

    for _ in range(3):
        write_facts(tmp_path / "fidelity.json", {"layers": 30})
    found = json.loads((tmp_path / "fidelity.json").read_text())
    assert found["layers"] == 30
    assert [run["commit"] for run in found["earlier"]] == [found["about"]["commit"]] * 2


@pytest.mark.parametrize(
    ("plan", "policies", "message"),
    [
        (["1,40"], None, "--plan 1,40: expected layers from 0 to 29"),
        (["x"], None, "--plan x: expected"),
        ([], ["lesismore"], "--policies 'lesismore': expected some of 'lessismore', "),
    ],
)
def test_plans_and_policies_are_judged_before_the_work(
    bench: Any, plan: list[str], policies: list[str] | None, message: str
) -> None:
    from bench.fidelity.__main__ import check_names

    with pytest.raises(SystemExit, match=f"^fidelity: error: {message}"):
        check_names(argparse.Namespace(plan=plan, policies=policies), bench)
    check_names(argparse.Namespace(plan=["1,20"], policies=["lessismore"]), bench)


def test_the_report_reads_off_equal_cost() -> None:
    from bench.fidelity.report import read_off, sign_test

    points = [(100.0, 1.0), (400.0, 0.25)]  # a straight line in logarithms
    assert read_off(points, 200.0) == pytest.approx(0.5)
    assert read_off(points, 50.0) is None
    ours = [{"text": "t", "context": "1", "window": str(i), "kl": "1"} for i in range(10)]
    theirs = [row | {"kl": "2"} for row in ours[:9]] + [ours[9] | {"kl": "0.5"}]
    wins, total, p = sign_test(ours, theirs)
    assert (wins, total) == (9, 10)
    assert p == pytest.approx(2 * (10 + 1) / 2**10)


def test_the_oracle_is_the_floor_of_the_results() -> None:
    rows = read_rows(BENCH / "results" / "fidelity.csv")
    for budget in {row["budget"] for row in rows if row["policy"] == "lessismore"}:
        sums: dict[str, float] = {}
        for row in (row for row in rows if row["budget"] == budget):
            sums[row["policy"]] = sums.get(row["policy"], 0.0) + float(row["kl"])
        assert min(sums, key=lambda name: sums[name]) == "oracle"
