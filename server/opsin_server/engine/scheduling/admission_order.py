"""In which order waiting sequences of one priority are admitted. No torch.

Who was preempted goes on first. Then adapters share what runs, the base model among them: next is the sequence whose
adapter has the fewest running, and among equals the one that came first. One adapter's thousand requests hold up
another's first by one place, and without adapters it is first come first served.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from opsin_server.engine.scheduling.sequence import Sequence


class AdmissionOrder:
    """waiting: in the order in which they came, preempted ones first."""

    def __init__(self, waiting: Iterable[Sequence], running: Iterable[Sequence]) -> None:
        self._first: deque[Sequence] = deque()
        self._queues: dict[bytes, deque[tuple[int, Sequence]]] = {}
        self._running = Counter(map(_adapter, running))
        for place, sequence in enumerate(waiting):
            if sequence.queue_seconds is not None:
                self._first.append(sequence)
            else:
                self._queues.setdefault(_adapter(sequence), deque()).append((place, sequence))

    def next(self) -> Sequence | None:
        """The same until it is told what became of it."""
        if self._first:
            return self._first[0]
        if not self._queues:
            return None
        adapter = min(self._queues, key=lambda one: (self._running[one], self._queues[one][0][0]))
        return self._queues[adapter][0][1]

    def admitted(self, sequence: Sequence) -> None:
        self._running[_adapter(sequence)] += 1
        self._take(sequence)

    def passed(self, sequence: Sequence) -> None:
        """Nothing can be done for its adapter now."""
        if self._first and self._first[0] is sequence:
            self._first.popleft()
        else:
            del self._queues[_adapter(sequence)]

    def _take(self, sequence: Sequence) -> None:
        if self._first and self._first[0] is sequence:
            self._first.popleft()
            return
        queue = self._queues[_adapter(sequence)]
        queue.popleft()
        if not queue:
            del self._queues[_adapter(sequence)]


def _adapter(sequence: Sequence) -> bytes:
    """b"": the base model."""
    return b"" if sequence.adapter is None else sequence.adapter.digest
