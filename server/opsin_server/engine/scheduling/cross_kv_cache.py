"""The ledger of the second layer group: blocks for keys and values of visual tokens that stand outside of the prompt.

An image's rows are written once, shared by key, and leave all together. A row costs the cross-attention layers only.
"""

from __future__ import annotations

from typing import TypeVar

from opsin_server.engine.scheduling.encoder_cache import Reservation, VisualStore

Slots = TypeVar("Slots")


class CrossKVCache(VisualStore[Slots]):
    """budget: blocks. What is filled in for an image are the slots of its rows, as the runner wants them."""

    pinned_during_decode = True

    def __init__(self, total: int, block_size: int) -> None:
        super().__init__(total)
        self.block_size = block_size
        self._free = list(range(total))
        self._blocks: dict[bytes, list[int]] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    def size(self, rows: int) -> int:
        return -(-rows // self.block_size)

    def blocks(self, key: bytes) -> list[int]:
        """Where the image's rows lie, or will."""
        return self._blocks[key]

    def reserve(self, key: bytes, rows: int, owner: str) -> Reservation:
        size = self.size(rows)
        assert size <= self.budget, "checked when the request came"
        found = super().reserve(key, rows, owner)
        if found is Reservation.RESERVED:
            self._blocks[key] = [self._free.pop() for _ in range(size)]
        return found

    def drop(self, key: bytes) -> None:
        super().drop(key)
        self._free += self._blocks.pop(key)
