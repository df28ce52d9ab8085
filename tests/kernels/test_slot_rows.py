"""Rows sorted by slot and cut into tiles: every row of an adapter in one tile, whatever the mix, and no other row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin_kernels.slot_rows import BLOCK, FEW, FEW_BLOCK, SlotRows


def rows_of(slots: list[int], count: int) -> SlotRows:
    return SlotRows(torch.tensor(slots, dtype=torch.int64), torch.arange(1, count + 2))


def check(slots: list[int], count: int) -> None:
    tiles = rows_of(slots, count).tiles
    order, seen = tiles.order.tolist(), []
    for slot, first, stop in zip(tiles.slots.tolist(), tiles.first.tolist(), tiles.stop.tolist(), strict=True):
        assert 0 <= slot < count
        mine = order[first : min(stop, first + tiles.block)] if first < stop else []
        assert all(slots[row] == slot + 1 for row in mine)
        assert mine == sorted(mine), "as they stood"
        seen += mine
    assert sorted(seen) == [row for row, slot in enumerate(slots) if slot > 0]


@given(st.integers(1, 9), st.lists(st.integers(0, 10**6), min_size=1, max_size=70), st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_row_of_an_adapter_is_in_one_tile(count: int, drawn: list[int], trains: bool) -> None:
    """Rows of the base model, and of the adapter in training (slot -1), are in none."""
    lowest = -1 if trains else 0
    check([lowest + number % (count + 1 - lowest) for number in drawn], count)


@pytest.mark.parametrize("slots", [[1] * FEW, [8] * (FEW + 1), [0] * 300, [1, 8] * 200, list(range(9)) * 33, [3]])
def test_few_rows_and_many_all_of_one_and_mixed(slots: list[int]) -> None:
    check(slots, 8)
    assert rows_of(slots, 8).tiles.block == (FEW_BLOCK if len(slots) <= FEW else BLOCK)


def test_the_number_of_tiles_follows_from_rows_and_slots_alone() -> None:
    """A recording has that many programs for whatever comes."""
    mixes = [[0] * 40, [5] * 40, [n % 9 for n in range(40)], [1] * 16 + [2] * 24]
    assert {len(rows_of(mix, 8).tiles.slots) for mix in mixes} == {10}
    assert len(rows_of([1], 32).tiles.slots) == 1
