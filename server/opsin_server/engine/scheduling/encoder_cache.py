"""The ledger of what is kept of pictures: where it lies, who needs it, who has to go. No torch: it hands out blocks.

A picture's visual tokens (or, of a model with cross-attention, their keys and values) are written once into blocks of a
pool, shared by key (see `Sequence.visual_keys`), and leave all together. Those of a long video come in the course of
several steps. An entry is pinned while a running sequence still has rows of it to compute; unpinned ones go least
recently used first.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum, auto
from typing import Generic, TypeVar

Slots = TypeVar("Slots")


class Reservation(Enum):
    """What the cache answers to a sequence that needs a picture. PRESENT: it is there, or on its way. RESERVED: there
    was none, room was made, and the caller must `fill` it. FULL: there is no room while others are pinned, and nothing
    changed."""

    PRESENT = auto()
    RESERVED = auto()
    FULL = auto()


class EncoderCache(Generic[Slots]):
    """total blocks of `block_size` visual tokens. What is filled in for a picture is where its tokens lie, as the
    runner wants it. pinned_during_decode: whether the answer's tokens, too, attend to the pictures."""

    def __init__(self, total: int, block_size: int, pinned_during_decode: bool = False) -> None:
        self.total, self.block_size, self.pinned_during_decode = total, block_size, pinned_during_decode
        self.queries = self.hits = 0
        self._free = list(range(total - 1, -1, -1))  # those that were used are used again first: memory is touched late
        self._blocks: OrderedDict[bytes, list[int]] = OrderedDict()  # least recently used first; reserved or filled
        self._filled: dict[bytes, Slots] = {}
        self._begun: dict[bytes, int] = {}  # layers that are computed of what is not whole by then
        self._pins: dict[bytes, set[str]] = {}
        self._held: dict[str, set[bytes]] = {}  # the same, by owner
        self._pinned_blocks = 0

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks of entries and reservations."""
        return self.total - self.free

    def size(self, tokens: int) -> int:
        """Blocks that a picture of so many visual tokens takes."""
        return -(-tokens // self.block_size)

    def __contains__(self, key: bytes) -> bool:
        return key in self._blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, key: bytes) -> Slots:
        return self._filled[key]

    def blocks(self, key: bytes) -> list[int]:
        """Where the picture's tokens lie, or will."""
        return self._blocks[key]

    def is_whole(self, key: bytes) -> bool:
        """Whether it is there, or will be by the end of the step."""
        return key in self._blocks and key not in self._begun

    def begun(self, key: bytes) -> int:
        """Layers of it that are there, while it is not whole."""
        return self._begun.get(key, 0)

    def reserve(self, key: bytes, tokens: int, owner: str) -> Reservation:
        """Pins the entry for `owner`, unless the cache is full."""
        if key in self._blocks:
            if owner not in self._pins[key] and self.is_whole(key):
                self.queries += 1
                self.hits += 1
            self._blocks.move_to_end(key)
            self._pin(key, owner)
            return Reservation.PRESENT
        size = self.size(tokens)
        assert size <= self.total, "checked when the request came"
        if self._pinned_blocks + size > self.total:
            return Reservation.FULL
        self.queries += 1
        while self.free < size:
            self.drop(next(k for k in self._blocks if not self._pins[k]))
        self._blocks[key], self._pins[key] = [self._free.pop() for _ in range(size)], set()
        self._pin(key, owner)
        return Reservation.RESERVED

    def _pin(self, key: bytes, owner: str) -> None:
        if not self._pins[key]:
            self._pinned_blocks += len(self._blocks[key])
        self._pins[key].add(owner)
        self._held.setdefault(owner, set()).add(key)

    def advance(self, key: bytes, layers: int, whole: bool) -> None:
        """So many layers of an entry will be there by the end of the step; whole: that is all."""
        self._begun[key] = layers
        if whole:
            del self._begun[key]

    def fill(self, key: bytes, slots: Slots) -> None:
        assert key in self._blocks
        self._filled[key] = slots

    def unpin(self, key: bytes, owner: str) -> None:
        if owner in self._pins.get(key, ()):
            self._pins[key].remove(owner)
            self._held[owner].remove(key)
            if not self._pins[key]:
                self._pinned_blocks -= len(self._blocks[key])

    def unpin_all(self, owner: str) -> None:
        for key in list(self._held.get(owner, ())):
            self.unpin(key, owner)
        self._held.pop(owner, None)

    def drop_unfilled(self) -> None:
        """After a failed step: reservations that were not filled, and what had come of them."""
        for key in [k for k in self._blocks if k not in self._filled]:
            self.drop(key)

    def drop(self, key: bytes) -> None:
        for owner in list(self._pins[key]):
            self.unpin(key, owner)
        self._free += self._blocks.pop(key)
        self._filled.pop(key, None)
        self._begun.pop(key, None)
        del self._pins[key]

    @property
    def pinned(self) -> int:
        """Entries that some sequence needs."""
        return sum(1 for pins in self._pins.values() if pins)
