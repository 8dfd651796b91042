"""The list of cache slots that a verification reads."""

from __future__ import annotations

import pytest
import torch

from lim_kernels.attend.slots import BLOCK, list_slots

from .cases import DEVICE


@pytest.mark.parametrize("extra", [0, 7])
@pytest.mark.parametrize("lengths", [[5], [0, 1, 3], [BLOCK - 1, BLOCK, BLOCK + 1], [9] * 33, [2 * BLOCK, 0, 40]])
def test_slots_are_listed_in_position_order(lengths: list[int], extra: int) -> None:
    table = torch.randint(1 << 30, (2 * len(lengths), 2 * BLOCK + 8), dtype=torch.int32, device=DEVICE)
    rows = torch.randperm(len(table), device=DEVICE)[: len(lengths)]
    listed = torch.cat([table[row, : n + extra] for row, n in zip(rows.tolist(), lengths, strict=True)])
    kv_indptr = torch.full((len(lengths) + 3,), -1, dtype=torch.int32, device=DEVICE)
    kv_indices = torch.full((len(listed) + 10,), -1, dtype=torch.int32, device=DEVICE)
    list_slots(table, rows, torch.tensor(lengths, device=DEVICE), extra, kv_indptr, kv_indices)
    assert kv_indptr.tolist() == [0, *(torch.tensor(lengths) + extra).cumsum(0).tolist(), -1, -1]
    assert kv_indices.tolist() == [*listed.tolist(), *[-1] * 10], "nothing beyond the list is written"


def test_ends_are_checked() -> None:
    table, rows = torch.zeros(2, 8, dtype=torch.int32), torch.zeros(2, dtype=torch.int64)
    indices = torch.zeros(20, dtype=torch.int32)
    for ends in (torch.zeros(2, dtype=torch.int32), torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="3 ends at least"):
            list_slots(table, rows, rows, 1, ends, indices)
