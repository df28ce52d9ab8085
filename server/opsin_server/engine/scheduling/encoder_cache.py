"""Visual tokens by key (see `Sequence.visual_keys`), within a budget. No torch: it holds whatever the runner computed.

An entry is pinned while a running sequence still has rows of it to compute; unpinned ones go least recently used first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from enum import Enum, auto
from typing import Generic, TypeVar

Features = TypeVar("Features")


class Reservation(Enum):
    """What a store answers to a sequence that needs an image. PRESENT: it is there, or on its way in this step.
    RESERVED: there was none, room was made, and the caller must `fill` it. FULL: there is no room while others are
    pinned, and nothing changed."""

    PRESENT = auto()
    RESERVED = auto()
    FULL = auto()


class VisualStore(ABC, Generic[Features]):
    """Which images are there, who needs them, and who has to go. budget: in units of `size`."""

    pinned_during_decode = False  # whether the answer's tokens, too, attend to the images

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used = 0  # by entries and reservations
        self.queries = self.hits = 0
        self._features: dict[bytes, Features] = {}
        self._sizes: OrderedDict[bytes, int] = OrderedDict()  # least recently used first; reserved or filled
        self._pins: dict[bytes, set[str]] = {}

    @abstractmethod
    def size(self, rows: int) -> int:
        """What an image of so many visual tokens takes of the budget."""

    def __contains__(self, key: bytes) -> bool:
        return key in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, key: bytes) -> Features:
        return self._features[key]

    def reserve(self, key: bytes, rows: int, owner: str) -> Reservation:
        """Pins the entry for `owner`, unless the store is full.

        One image larger than the whole budget is let in when it is alone: it must be computed at some time.
        """
        if key in self._sizes:
            if owner not in self._pins[key]:
                self.queries += 1
                self.hits += 1
            self._sizes.move_to_end(key)
            self._pins[key].add(owner)
            return Reservation.PRESENT
        size = self.size(rows)
        pinned = sum(n for d, n in self._sizes.items() if self._pins[d])
        if pinned and pinned + size > self.budget:
            return Reservation.FULL
        self.queries += 1
        for old in [d for d in self._sizes if not self._pins[d]]:
            if self.used + size <= self.budget:
                break
            self.drop(old)
        self._sizes[key], self._pins[key] = size, {owner}
        self.used += size
        return Reservation.RESERVED

    def fill(self, key: bytes, features: Features) -> None:
        assert key in self._sizes
        self._features[key] = features

    def unpin(self, key: bytes, owner: str) -> None:
        if key in self._pins:
            self._pins[key].discard(owner)

    def unpin_all(self, owner: str) -> None:
        for pins in self._pins.values():
            pins.discard(owner)

    def drop_unfilled(self) -> None:
        """After a failed step: reservations whose features never came."""
        for key in [d for d in self._sizes if d not in self._features]:
            self.drop(key)

    def drop(self, key: bytes) -> None:
        self.used -= self._sizes.pop(key)
        self._features.pop(key, None)
        del self._pins[key]

    @property
    def pinned(self) -> int:
        return sum(1 for pins in self._pins.values() if pins)


class EncoderCache(VisualStore[Features]):
    """The visual tokens themselves. budget: bytes."""

    def __init__(self, budget: int, bytes_per_token: int) -> None:
        super().__init__(budget)
        self.bytes_per_token = bytes_per_token

    def size(self, rows: int) -> int:
        return rows * self.bytes_per_token
