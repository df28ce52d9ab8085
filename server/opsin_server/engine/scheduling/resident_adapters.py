"""The ledger of adapter slots: which adapter lies in which, by content digest, and who needs it. No torch.

An adapter is asked for when a waiting sequence names it, loaded by someone else, and placed in a slot when a sequence
that has it is admitted. It is pinned while sequences run with it; an unpinned one stays until its slot is wanted, the
least recently used first. There are never more adapters loaded, or being loaded, outside of slots than there are slots.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from opsin_server.ipc.messages import AdapterRef

Weights = TypeVar("Weights")


@dataclass(frozen=True)
class LoadedAdapter(Generic[Weights]):
    """changes_pictures: the digest of what it changes in what is kept of pictures; empty: nothing."""

    weights: Weights
    changes_pictures: bytes


class ResidentAdapters(Generic[Weights]):
    """Slots are numbered from 1 on. No torch: it holds whatever was loaded."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._free = list(range(slots, 0, -1))
        self._slot_of: OrderedDict[bytes, int] = OrderedDict()  # least recently used first
        self._pins: dict[bytes, set[str]] = {}  # running sequences, of those in slots
        self._waiters: dict[bytes, dict[str, AdapterRef]] = {}  # all sequences that name it, until they end
        self._loading: set[bytes] = set()
        self._loaded: dict[bytes, LoadedAdapter[Weights]] = {}  # not in a slot yet
        self._changes: dict[bytes, bytes] = {}  # of those in slots
        self._wanted: list[AdapterRef] = []

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._slot_of

    @property
    def used(self) -> int:
        return len(self._slot_of)

    def expect(self, ref: AdapterRef, owner: str) -> None:
        """A sequence has come that has this adapter."""
        self._waiters.setdefault(ref.digest, {})[owner] = ref
        self._ask_for(ref)

    def forget(self, ref: AdapterRef, owner: str) -> None:
        """It has ended. What was loaded for it alone, and is in no slot, is dropped."""
        waiters = self._waiters.get(ref.digest, {})
        waiters.pop(owner, None)
        if not waiters:
            self._waiters.pop(ref.digest, None)
            self._loaded.pop(ref.digest, None)
        self.unpin(ref, owner)

    def take_wanted(self) -> list[AdapterRef]:
        """What has to be loaded now, each told once."""
        for waiters in self._waiters.values():
            self._ask_for(next(iter(waiters.values())))
        wanted, self._wanted = self._wanted, []
        return wanted

    def _ask_for(self, ref: AdapterRef) -> None:
        known = ref.digest in self._slot_of or ref.digest in self._loaded or ref.digest in self._loading
        if not known and len(self._loaded) + len(self._loading) < self.slots:
            self._loading.add(ref.digest)
            self._wanted.append(ref)

    @property
    def idle(self) -> bool:
        """Whether no sequence needs any."""
        return not self._waiters and not self._loaded and not any(self._pins.values())

    @property
    def loading(self) -> bool:
        return bool(self._loading)

    def fill(self, digest: bytes, adapter: LoadedAdapter[Weights]) -> None:
        """It is loaded."""
        self._loading.discard(digest)
        if digest in self._waiters and digest not in self._slot_of:
            self._loaded[digest] = adapter

    def fail(self, ref: AdapterRef) -> None:
        """It cannot be loaded from there. Who named this very place must be ended; others may have named a better."""
        self._loading.discard(ref.digest)

    def is_ready(self, digest: bytes) -> bool:
        """Whether only a slot may be lacking."""
        return digest in self._slot_of or digest in self._loaded

    def reserve(self, ref: AdapterRef, owner: str) -> tuple[int, LoadedAdapter[Weights] | None] | None:
        """Pins the adapter for `owner`: its slot, and what the caller must put there first, or None when it lies there.
        None at all: it is not loaded, or every slot is pinned; nothing has changed then."""
        slot = self._slot_of.get(ref.digest)
        if slot is not None:
            self._slot_of.move_to_end(ref.digest)
            self._pins[ref.digest].add(owner)
            return slot, None
        if ref.digest not in self._loaded or (slot := self._free_slot()) is None:
            return None
        loaded = self._loaded.pop(ref.digest)
        self._slot_of[ref.digest], self._pins[ref.digest] = slot, {owner}
        self._changes[ref.digest] = loaded.changes_pictures
        return slot, loaded

    def changes_pictures(self, ref: AdapterRef) -> bytes:
        """Of one that is in a slot."""
        return self._changes[ref.digest]

    def _free_slot(self) -> int | None:
        if self._free:
            return self._free.pop()
        victim = next((digest for digest in self._slot_of if not self._pins[digest]), None)
        if victim is None:
            return None
        self.drop(victim)
        return self._free.pop()

    def unpin(self, ref: AdapterRef, owner: str) -> None:
        if ref.digest in self._pins:
            self._pins[ref.digest].discard(owner)

    def drop(self, digest: bytes) -> None:
        """What lies in its slot is nothing to be relied on."""
        self._free.append(self._slot_of.pop(digest))
        del self._pins[digest], self._changes[digest]
