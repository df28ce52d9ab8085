"""Turns of adapters where there are more than slots. No torch.

An adapter that waits for a slot gets the one whose sequences are soonest done: that one takes no more of them, however
many come. Before it is asked to leave, an adapter may have admitted as many sequences as a turn has, so that a slot is
not filled anew for each of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from collections.abc import Sequence as Seq

from opsin_server.engine.scheduling.resident_adapters import ResidentAdapters
from opsin_server.engine.scheduling.sequence import Sequence

SMALLEST_TURN = 4  # sequences


class AdapterTurns:
    """max_sequences: how many run at the same time at most."""

    def __init__(self, adapters: ResidentAdapters[object], max_sequences: int) -> None:
        self._adapters = adapters
        self._turn = max(SMALLEST_TURN, max_sequences // max(1, adapters.slots))
        self._left: dict[bytes, int] = {}  # sequences that an adapter may still admit in its turn
        self._leaving: set[bytes] = set()

    def may_join(self, digest: bytes) -> bool:
        """Whether a sequence may be admitted with this adapter, as far as others' turns go."""
        return digest not in self._leaving or self._left.get(digest, 0) > 0

    def begin(self, digest: bytes) -> None:
        """It was given a slot, and those that have none any more are forgotten."""
        in_slots = self._adapters.in_slots
        self._left = {other: left for other, left in self._left.items() if other in in_slots}
        self._left[digest] = self._turn
        self._leaving.discard(digest)

    def joined(self, digest: bytes) -> None:
        """A sequence was admitted with it."""
        self._left[digest] = max(0, self._left.get(digest, 0) - 1)

    def settle(self, wanted: Collection[bytes], running: Iterable[Sequence]) -> None:
        """After a step was filled. wanted: adapters that are loaded and have found no slot. Chooses whose turn ends."""
        if not wanted:
            self._leaving.clear()
            return
        work: dict[bytes, int] = {}
        for sequence in running:
            if sequence.adapter is not None:
                digest = sequence.adapter.digest
                work[digest] = work.get(digest, 0) + sequence.max_tokens - sequence.generated
        in_slots = self._adapters.in_slots
        held = self._adapters.released_by(in_slots)
        self._leaving &= set(held)
        for digest in self._order(held, work)[: len(wanted) - len(self._leaving)]:
            self._leaving.add(digest)

    def _order(self, held: Seq[bytes], work: dict[bytes, int]) -> list[bytes]:
        """Whose turn is over first, then those whose sequences are soonest done."""
        staying = [digest for digest in held if digest not in self._leaving]
        return sorted(staying, key=lambda digest: (self._left.get(digest, 0) > 0, work.get(digest, 0)))
