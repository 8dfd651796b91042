"""Heads spread over devices: every device ends with the set that one device with all heads chooses, ties included.

The devices run one after the other, twice: first each leaves what it offers, then each gets what all have offered.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lim_kernels.select.budget import split_budget
from lim_kernels.select.reference import select_token_set
from lim_kernels.select.shard import Exchange, HeadShard
from lim_kernels.select.workspace import SelectWorkspace

from .cases import DEVICE, ON_GPU, SelectCase, random_case


@dataclass
class Mail:
    """What devices offer, by device and call; a stand-in for the collective between them."""

    devices: int
    offered: list[list[Tensor]] = field(default_factory=list)

    def collect(self, device: int) -> Callable[[Tensor, Tensor], None]:
        """The first time: what is offered is kept, and comes back as if the others had no candidates."""
        self.offered.append([])

        def gather(out: Tensor, own: Tensor) -> None:
            assert out.shape == (self.devices, *own.shape)
            self.offered[device].append(own.clone())
            out[..., 0], out[..., 1] = torch.iinfo(own.dtype).max, 0
            out[device] = own

        return gather

    def deliver(self) -> Callable[[Tensor, Tensor], None]:
        """The second time: call for call what all have offered."""
        calls = iter(zip(*self.offered, strict=True))

        def gather(out: Tensor, _own: Tensor) -> None:
            out.copy_(torch.stack(next(calls)))

        return gather


def on_all(devices: int, num_heads: int, run: Callable[[HeadShard], Any]) -> list[Any]:
    """``run`` with every device's shard of ``num_heads`` heads; what it returns once the others' offers are there."""
    mail = Mail(devices)
    shards = [HeadShard(num_heads, d * (num_heads // devices), devices, mail.collect(d)) for d in range(devices)]
    for shard in shards:
        run(shard)
    assert len({len(calls) for calls in mail.offered}) == 1, "every device calls equally often"
    return [run(replace(shard, all_gather=mail.deliver())) for shard in shards]


# The reference


@pytest.mark.parametrize("seed", range(30))
def test_the_reference_of_shards_is_the_reference(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    devices = draw.choice([1, 2, 3, 4, 8])
    heads, width = devices * draw.choice([1, 2, 5]), draw.choice([9, 40, 130])
    parts = split_budget(draw.choice([1, 8, 33]), draw.choice([0.0, 0.25, 1.0]), draw.choice([0, 2]))
    lengths = torch.tensor([draw.randint(0, width) for _ in range(draw.randint(1, 5))])
    scores = torch.randint(-3, 4, (len(lengths), heads, width)).float()
    if draw.random() < 0.3:
        scores.zero_()
    own = heads // devices
    expected = select_token_set(scores, lengths, parts)

    def run(shard: HeadShard) -> Any:
        return select_token_set(scores[:, shard.first_head : shard.first_head + own], lengths, parts, shard)

    for found in on_all(devices, heads, run):
        assert torch.equal(found.positions, expected.positions)
        assert torch.equal(found.lengths, expected.lengths)


# The kernels


def sets_on_all(case: SelectCase, devices: int) -> list[tuple[list[list[int]], SelectWorkspace]]:
    """The slots that each device's kernels chose, by request, and what its selection left behind."""
    return on_all(devices, case.heads, lambda shard: case.of_shard(shard).select(shard))


SHAPES = {
    "two devices": (2, SelectCase([60, 3, 17], heads=4, kv_heads=2)),
    "three, SmolLM2's heads": (3, SelectCase([40], heads=9, kv_heads=3)),
    "more devices than KV heads": (4, SelectCase([40], heads=4, kv_heads=2)),
    "one": (1, SelectCase([40, 12], heads=4, kv_heads=2)),
    "several chunks": (2, SelectCase([20, 33], heads=2, kv_heads=2, rows=1)),
    "nothing ranked": (2, SelectCase([40], heads=4, kv_heads=2, recency_ratio=1.0, sinks=4)),
    "no recency": (2, SelectCase([40], heads=4, kv_heads=2, recency_ratio=0.0, sinks=0)),
    "a budget of one": (2, SelectCase([1, 2, 40], heads=4, kv_heads=2, budget=1, recency_ratio=0.0, sinks=0)),
    "a budget above a tile": (2, SelectCase([140], heads=2, kv_heads=2, budget=70)),
}


@pytest.mark.parametrize(("devices", "case"), SHAPES.values(), ids=SHAPES)
def test_every_device_has_the_set_of_one(devices: int, case: SelectCase) -> None:
    for chosen, _ in sets_on_all(case, devices):
        assert chosen == case.expected_sets()


def test_one_device_may_need_the_complete_ranking_and_another_not() -> None:
    """Every score is tied on the first device; the other's are distinct."""
    case = SelectCase([90], heads=4, kv_heads=2, integers=False)
    case.q[:, :2].zero_()
    found = sets_on_all(case, 2)
    assert [workspace.unfinished.tolist() for _, workspace in found] == [[1], [0]]
    own_scores = [replace(case, heads=2).scores(workspace)[0] for _, workspace in found]
    for chosen, _ in found:
        assert chosen == case.expected_sets([torch.cat(own_scores)])


def possible(case: SelectCase, devices: int) -> bool:
    """Whether heads divide, and a device's query heads read whole KV heads or one of them."""
    own, group = case.heads // devices, case.heads // case.kv_heads
    return case.heads % devices == 0 and (own % group == 0 or group % own == 0)


@pytest.mark.parametrize("seed", range(120 if ON_GPU else 3))
def test_random_shapes(seed: int) -> None:
    case = random_case(seed)
    devices = random.Random(seed).choice([devices for devices in range(1, 9) if possible(case, devices)])
    for chosen, _ in sets_on_all(case, devices):
        assert chosen == case.expected_sets()


def test_bad_shards_get_one_line() -> None:
    case = SelectCase([40], heads=4, kv_heads=2)
    room = torch.zeros(60, dtype=torch.int32, device=DEVICE)
    layer = case.layer(case.select_workspace(), room[:2], room)
    shard = HeadShard(8, 5, 2, lambda _out, _own: None)
    exchange = Exchange.allocate(shard, 1, case.parts.selected, DEVICE)
    with pytest.raises(ValueError, match="heads from 5 on: expected 4 of 8"):
        replace(layer, exchange=exchange).run()
    small = Exchange.allocate(replace(shard, first_head=4), 1, 3, DEVICE)
    with pytest.raises(ValueError, match=r"exchange for \[1, 3\] requests and tokens: expected 1 or more, and 12"):
        replace(layer, exchange=small).run()
