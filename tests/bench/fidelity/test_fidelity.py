"""The comparison's own honesty: rivals as they are defined, the oracle below all, no cost where nothing is left out."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.fidelity.__main__ import Bench, check_names
from bench.fidelity.files import Table, write_facts
from bench.fidelity.policies import kascade, oracle, quest, streaming_llm, tidal_decode, without_unification
from bench.fidelity.report import read_off, sign_test
from bench.fidelity.subject import Subject
from bench.fidelity.texts import recall_prompt
from lim_kernels.select.budget import split_budget
from lim_sglang.layer_plan import LayerPlan
from lim_sglang.tools.analysis.model import LayerView
from lim_sglang.tools.analysis.policies import Dense
from lim_sglang.tools.servers.embedded_model import ensure_model

STEPS, HEADS, KV_HEADS, TOKENS, HEAD_DIM = 5, 6, 2, 83, 8
GROUP = HEADS // KV_HEADS
ROWS = [(step, head, TOKENS - STEPS + 1 + step) for step in range(STEPS) for head in range(HEADS)]  # and its length
PLAN = LayerPlan.from_select_layers(6, (4,))


@pytest.fixture
def view() -> LayerView:
    """A layer deep enough for every policy to be sparse in, random-normal."""
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(1, HEADS, STEPS, HEAD_DIM, generator=generator)
    keys = torch.randn(1, KV_HEADS, TOKENS, HEAD_DIM, generator=generator)
    return LayerView.of_last(4, queries, keys, keys, STEPS, HEAD_DIM**-0.5)


def kept(mask: Tensor, step: int, head: int, length: int) -> list[int]:
    """Positions that a head of a step reads."""
    row = mask.expand(STEPS, HEADS, TOKENS)[step, head]
    assert not bool(row[length:].any()), "nothing behind a step may be read"
    return row.nonzero()[:, 0].tolist()


def reuse(policy: Any, view: LayerView) -> Tensor:
    """The mask of the layer after the one that selects."""
    policy.mask(view)
    mask: Tensor = policy.mask(replace(view, layer=5))
    return mask


def test_streamingllm_keeps_sinks_and_the_latest(view: LayerView) -> None:
    mask = streaming_llm(20).mask(view)
    for step, head, length in ROWS:
        assert kept(mask, step, head, length) == [0, 1, 2, 3, *range(length - 16, length)]


def test_quest_takes_the_pages_with_the_highest_bounds(view: LayerView) -> None:
    mask = quest(32).mask(view)
    for step, head, length in ROWS:
        query, keys = view.queries[step, head], view.keys[:length, head // GROUP]
        pages = [range(begin, min(begin + 16, length)) for begin in range(0, length, 16)]
        bounds = [float((query * keys[page]).max(0).values.sum()) for page in pages]
        best = sorted(range(len(pages)), key=lambda page: -bounds[page])[:2]
        assert kept(mask, step, head, length) == sorted(t for page in best for t in pages[page])


def test_heads_keep_their_own_best(view: LayerView) -> None:
    """TidalDecode's and the oracle's sets; without unification, beside sinks and window."""
    best = oracle(LayerPlan.from_select_layers(6, (2,)), 16).mask(view)
    reused = reuse(tidal_decode(PLAN, 16), view)
    beside = reuse(without_unification(PLAN, split_budget(16, 0.25, 1)), view)
    for step, head, length in ROWS:
        order = view.scores[step, head, :length].argsort(descending=True).tolist()
        assert kept(best, step, head, length) == kept(reused, step, head, length) == sorted(order[:16])
        fixed = [0, *range(length - 3, length)]
        own = [t for t in order if t not in fixed][:12]
        assert kept(beside, step, head, length) == sorted([*fixed, *own])


def test_kascade_pools_the_weights_of_a_group(view: LayerView) -> None:
    mask = reuse(kascade(PLAN, 16), view)
    for step, head, length in ROWS:
        first = head // GROUP * GROUP
        logits = view.scores[step, first : first + GROUP, :length] * view.scale
        best = logits.softmax(-1).mean(0).argsort(descending=True)[:16]
        assert kept(mask, step, head, length) == sorted(best.tolist())


@pytest.fixture(scope="module")
def bench() -> Bench:
    args = argparse.Namespace(steps=16, windows=1)
    return Bench(Subject.load(ensure_model(quiet=True)), args)


def test_the_oracle_is_below_every_other_arm_and_attended_tokens_are_counted(bench: Bench) -> None:
    """A harness that lets a policy of the same budget beat the exact top tokens is broken."""
    window = bench.window("worked steps", 600, 0)
    found = {arm.name: bench.compare(window, arm) for arm, _ in bench.policies(96)}
    assert len(found) == 11
    assert min(found, key=lambda name: found[name]["kl"]) == "oracle"
    assert found["oracle"]["kl"] > 1e-4, "a budget of 96 of 600 tokens must cost something"
    full = 600 + (16 + 1) / 2
    for name, dense in {"oracle": 4, "lessismore": 4, "streamingllm": 2}.items():
        assert found[name]["attended"] == pytest.approx((dense * full + (30 - dense) * 96) / 30)
    for arm, _ in [*bench.policies(640), (Dense(), ())]:
        nothing_left_out = bench.compare(window, arm)
        assert abs(nothing_left_out["kl"]) < 1e-6, arm.name
        assert nothing_left_out["recall"] == pytest.approx(1.0, abs=1e-6), arm.name


@pytest.mark.parametrize("task", ["needle", "keys"])
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_a_fact_lies_where_it_should(bench: Bench, task: str, depth: float) -> None:
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
    path = tmp_path / "rows.csv"
    table = Table(path, ["name", "kl"], keys=1)
    table.add(["a, a"], {"kl": 0.25})
    table.add(["b"], {"kl": 0.5})
    path.write_text(path.read_text()[:-4])  # cut off behind "b,"
    table = Table(path, ["name", "kl"], keys=1)
    assert table.has(["a, a"])
    assert not table.has(["b"])
    table.add(["c"], {"kl": 1.0})
    assert table.has(["c"])
    assert path.read_text() == 'name,kl\n"a, a",0.25\nc,1\n'
    with pytest.raises(SystemExit, match=r"rows.csv has other columns; move it away or name another --out$"):
        Table(path, ["name", "nll"], keys=1)


def test_a_resumed_run_names_the_earlier_ones(tmp_path: Path) -> None:
    for _ in range(3):
        write_facts(tmp_path / "fidelity.json", {"layers": 30})
    found = json.loads((tmp_path / "fidelity.json").read_text())
    assert found["layers"] == 30
    assert [run["commit"] for run in found["earlier"]] == [found["about"]["commit"]] * 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"plan": ["1,40"]}, "--plan 1,40: expected layers from 0 to 29"),
        ({"plan": ["x"]}, "--plan x: expected"),
        ({"policies": ["lesismore"]}, "--policies 'lesismore': expected some of 'lessismore', "),
    ],
)
def test_plans_and_policies_are_judged_before_the_work(bench: Bench, wrong: dict[str, Any], message: str) -> None:
    right = {"plan": ["1,20"], "policies": ["lessismore"]}
    check_names(argparse.Namespace(**right), bench)
    with pytest.raises(SystemExit, match=f"^fidelity: error: {message}"):
        check_names(argparse.Namespace(**(right | wrong)), bench)


def test_the_report_reads_off_equal_cost() -> None:
    points = [(100.0, 1.0), (400.0, 0.25)]  # a straight line in logarithms
    assert read_off(points, 200.0) == pytest.approx(0.5)
    assert read_off(points, 50.0) is None
    ours = [{"text": "t", "context": "1", "window": str(i), "kl": "1"} for i in range(10)]
    theirs = [row | {"kl": "2"} for row in ours[:9]] + [ours[9] | {"kl": "0.5"}]
    wins, total, p = sign_test(ours, theirs)
    assert (wins, total) == (9, 10)
    assert p == pytest.approx(2 * (10 + 1) / 2**10)
