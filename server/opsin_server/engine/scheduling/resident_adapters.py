"""The ledger of adapters, by content digest: which lies in which slot, which has a copy in the host's memory, which is
being read, and who needs it. No torch.

An adapter is asked for when a waiting sequence names it (or the operator keeps it), read by someone else into a host
copy, and placed in a slot when a sequence that has it is admitted. It is pinned while sequences run with it; an
unpinned one stays until its slot is wanted, the least recently used first. Host copies stay as long as there is room,
again the least recently used going first, but none that somebody waits for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from opsin_server.ipc.messages import AdapterRef

Weights = TypeVar("Weights")
Tier = Literal["slot", "host", "disk"]


@dataclass(frozen=True)
class LoadedAdapter(Generic[Weights]):
    """changes_pictures: the digest of what it changes in what is kept of pictures; empty: nothing."""

    weights: Weights
    changes_pictures: bytes


class ResidentAdapters(Generic[Weights]):
    """Slots are numbered from 1 on. host_copies: how many are kept in the host's memory, those being read among them;
    None: as many as there are slots. No torch: it holds whatever was loaded."""

    def __init__(self, slots: int, host_copies: int | None = None) -> None:
        self.slots, self.host_copies = slots, slots if host_copies is None else host_copies
        self._free = list(range(slots, 0, -1))
        self._slot_of: OrderedDict[bytes, int] = OrderedDict()  # least recently used first
        self._pins: dict[bytes, set[str]] = {}  # running sequences, of those in slots
        self._kept: dict[bytes, AdapterRef] = {}  # by the operator
        self._waiters: dict[bytes, dict[str, AdapterRef]] = {}  # all sequences that name it, until they end
        self._loading: set[bytes] = set()
        self._host: OrderedDict[bytes, LoadedAdapter[Weights]] = OrderedDict()  # least recently used first
        self._changes: dict[bytes, bytes] = {}  # of those in slots
        self._wanted: list[AdapterRef] = []

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._slot_of

    @property
    def used(self) -> int:
        return len(self._slot_of)

    @property
    def in_slots(self) -> tuple[bytes, ...]:
        return tuple(self._slot_of)

    @property
    def on_host(self) -> tuple[bytes, ...]:
        return tuple(self._host)

    def tier(self, digest: bytes) -> Tier:
        """Where it is found now."""
        return "slot" if digest in self._slot_of else "host" if digest in self._host else "disk"

    def keep(self, refs: Iterable[AdapterRef]) -> None:
        """These are read now and not evicted, and none of those that were kept before; at least one slot must be left
        to all others."""
        self._kept = {ref.digest: ref for ref in refs}
        assert not self._kept or len(self._kept) < self.slots

    def expect(self, ref: AdapterRef, owner: str) -> None:
        """A sequence has come that has this adapter."""
        self._waiters.setdefault(ref.digest, {})[owner] = ref
        self._ask_for(ref)

    def forget(self, ref: AdapterRef, owner: str) -> None:
        """It has ended."""
        waiters = self._waiters.get(ref.digest, {})
        waiters.pop(owner, None)
        if not waiters:
            self._waiters.pop(ref.digest, None)
        self.unpin(ref, owner)

    def take_wanted(self) -> list[AdapterRef]:
        """What has to be loaded now, each told once."""
        for waiters in self._waiters.values():
            self._ask_for(next(iter(waiters.values())))
        for ref in self._kept.values():
            self._ask_for(ref)
        wanted, self._wanted = self._wanted, []
        return wanted

    def _ask_for(self, ref: AdapterRef) -> None:
        known = ref.digest in self._slot_of or ref.digest in self._host or ref.digest in self._loading
        if not known and len(self._loading) < self.slots and self._make_room():
            self._loading.add(ref.digest)
            self._wanted.append(ref)

    def _make_room(self) -> bool:
        """For another host copy."""
        while len(self._host) + len(self._loading) >= self.host_copies:
            victim = next((digest for digest in self._host if not self._needs_host_copy(digest)), None)
            if victim is None:
                return False
            del self._host[victim]
        return True

    def _needs_host_copy(self, digest: bytes) -> bool:
        return digest not in self._slot_of and (digest in self._waiters or digest in self._kept)

    @property
    def idle(self) -> bool:
        """Whether no sequence needs any."""
        return not self._waiters and not any(self._pins.values())

    @property
    def loading(self) -> bool:
        return bool(self._loading)

    def fill(self, digest: bytes, adapter: LoadedAdapter[Weights]) -> None:
        """It is loaded. (Room was made for it when it was asked for.)"""
        self._loading.discard(digest)
        self._host[digest] = adapter

    def fail(self, ref: AdapterRef) -> None:
        """It cannot be loaded from there. Who named this very place must be ended; others may have named a better. A
        kept one is not tried again."""
        self._loading.discard(ref.digest)
        if self._kept.get(ref.digest) == ref:
            del self._kept[ref.digest]

    def is_ready(self, digest: bytes) -> bool:
        """Whether only a slot may be lacking."""
        return digest in self._slot_of or digest in self._host

    def reserve(self, ref: AdapterRef, owner: str) -> tuple[int, LoadedAdapter[Weights] | None] | None:
        """Pins the adapter for `owner`: its slot, and what the caller must put there first, or None when it lies there.
        None at all: it is not loaded, or every slot is pinned; nothing has changed then."""
        slot = self._slot_of.get(ref.digest)
        if slot is not None:
            self._slot_of.move_to_end(ref.digest)
            self._pins[ref.digest].add(owner)
            return slot, None
        if ref.digest not in self._host or (slot := self._free_slot(ref.digest)) is None:
            return None
        loaded = self._put(ref.digest, slot)
        self._pins[ref.digest].add(owner)
        return slot, loaded

    def place_kept(self) -> dict[bytes, tuple[int, LoadedAdapter[Weights]]]:
        """Those that the operator keeps, are loaded, and can have a slot now: by digest, the slot, and what the caller
        must put there. (They do not wait for a sequence: their host copies would keep others from being read.)"""
        absent = [digest for digest in self._kept if digest in self._host and digest not in self._slot_of]
        return {
            digest: (slot, self._put(digest, slot))
            for digest in absent
            if (slot := self._free_slot(digest)) is not None
        }

    def _put(self, digest: bytes, slot: int) -> LoadedAdapter[Weights]:
        loaded = self._host[digest]
        self._host.move_to_end(digest)
        self._slot_of[digest], self._pins[digest] = slot, set()
        self._changes[digest] = loaded.changes_pictures
        return loaded

    def changes_pictures(self, ref: AdapterRef) -> bytes:
        """Of one that is in a slot."""
        return self._changes[ref.digest]

    def _free_slot(self, digest: bytes) -> int | None:
        """For this adapter. Slots are left for the kept ones that are not there yet."""
        absent = sum(kept not in self._slot_of for kept in self._kept if kept != digest)
        evictable = [other for other in self._slot_of if not self._pins[other] and other not in self._kept]
        if digest not in self._kept and len(self._free) + len(evictable) <= absent:
            return None
        if not self._free:
            if not evictable:
                return None
            self.drop(evictable[0])
        return self._free.pop()

    def unpin(self, ref: AdapterRef, owner: str) -> None:
        if ref.digest in self._pins:
            self._pins[ref.digest].discard(owner)

    def released_by(self, order: Sequence[bytes]) -> list[bytes]:
        """Of these, those that only sequences hold in their slots."""
        return [digest for digest in order if self._pins.get(digest) and digest not in self._kept]

    def drop(self, digest: bytes) -> None:
        """What lies in its slot is nothing to be relied on."""
        self._free.append(self._slot_of.pop(digest))
        del self._pins[digest], self._changes[digest]
