"""Query heads that are spread over devices (tensor parallelism): what they exchange so that all hold one exact set.

A device ranks with its own heads, counted among all of them, and offers its ``m`` candidates with the smallest
unified ranks. A token among the ``m`` smallest ranks of all heads has its rank from some device, and there it is
among the ``m`` smallest. So the set follows from what all devices offer: the smallest rank of every position,
then the ``m`` smallest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeadShard:
    """The heads of this device among those of all.

    Attributes:
        num_heads: query heads of all devices.
        first_head: the number of this device's first, from 0; its heads are consecutive.
        devices: how many there are.
        all_gather: called with an output [devices, …] and an input […], both contiguous; every device calls it equally
            often and with equal shapes.
    """

    num_heads: int
    first_head: int
    devices: int
    all_gather: Callable[[Tensor, Tensor], object]

    def gather(self, offered: Tensor) -> Tensor:
        """What all devices offer, [devices, …] in a new tensor, from this device's […]."""
        offered = offered.contiguous()
        gathered = offered.new_empty(self.devices, *offered.shape)
        self.all_gather(gathered, offered)
        return gathered


@dataclass(frozen=True)
class Exchange:
    """Buffers of the exchange on a GPU, made once; captured graphs keep their addresses.

    Attributes:
        shard: whose heads these are.
        offered: [rows, m, 2] int32, ranks and positions.
        gathered: int32, those of all devices, [devices, R, m, 2] for a chunk of ``R`` requests.
        joined: [rows, devices * m] int32, the ranks of ``gathered`` that are their position's smallest.
    """

    shard: HeadShard
    offered: Tensor
    gathered: Tensor
    joined: Tensor

    @classmethod
    def allocate(cls, shard: HeadShard, rows: int, selected: int, device: torch.device | str) -> Exchange:
        """Make the buffers for chunks of up to ``rows`` requests that select ``selected`` tokens by rank."""
        pairs = max(1, selected)
        return cls(
            shard,
            torch.zeros(rows, pairs, 2, dtype=torch.int32, device=device),
            torch.zeros(shard.devices * rows * pairs * 2, dtype=torch.int32, device=device),
            torch.zeros(rows, shard.devices * pairs, dtype=torch.int32, device=device),
        )

    def gather(self, rows: int) -> None:
        """Exchange what the first ``rows`` requests of ``offered`` hold."""
        offered = self.offered[:rows]
        gathered = self.gathered[: self.shard.devices * offered.numel()]
        self.shard.all_gather(gathered.view(self.shard.devices, *offered.shape), offered)

    @property
    def nbytes(self) -> int:
        """Device memory of the buffers, in bytes."""
        return self.offered.nbytes + self.gathered.nbytes + self.joined.nbytes
