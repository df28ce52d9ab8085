"""Which rows of a batch have which adapter, as the device knows it: made once a step, read by every linear."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

FEW, FEW_BLOCK, BLOCK = 256, 16, 64  # rows of a step that count as few; rows of a tile then, and of larger steps


@dataclass(frozen=True)
class Tiles:
    """Rows sorted by slot, cut into tiles of one slot each. order I64 [T]: row numbers, by slot and then as they stood.
    slots, first, stop I32 [P]: a tile's slot, counted from 0, and its places in `order`; with first >= stop there is
    nothing to do. block: the most rows of a tile.

    P is enough for any mix: it follows from how many rows and slots there are, not from which row has which.
    """

    order: Tensor
    slots: Tensor
    first: Tensor
    stop: Tensor
    block: int


@dataclass(frozen=True)
class SlotRows:
    """slots I64 [T]: of each row the number of its adapter's slot; 0 and less: it has none. numbers I64 [S + 1]: 1 to
    S + 1, on the same device."""

    slots: Tensor
    numbers: Tensor

    @cached_property
    def mine(self) -> Tensor:
        """bool [T, S]: whether a row has the adapter of slot s + 1."""
        return self.slots[:, None] == self.numbers[:-1]

    @cached_property
    def tiles(self) -> Tiles:
        """Made of operations that a CUDA graph can hold: shapes are fixed, and the host learns no number."""
        count, rows = len(self.numbers) - 1, len(self.slots)
        block = FEW_BLOCK if rows <= FEW else BLOCK
        programs = min(rows, (rows + count * (block - 1)) // block)
        by_slot, order = torch.sort(self.slots, stable=True)
        edges = torch.searchsorted(by_slot, self.numbers)
        begins, ends = edges[:-1], edges[1:]
        blocks = -((begins - ends) // block)
        last = blocks.cumsum(0)
        place = torch.arange(programs, device=self.slots.device)
        slot = torch.searchsorted(last, place, right=True).clamp_(max=count - 1)  # (tiles left over: behind the last)
        first = (begins + (blocks - last) * block)[slot] + place * block
        kind = torch.int32
        return Tiles(order, slot.to(kind), first.to(kind), ends[slot].to(kind), block)
