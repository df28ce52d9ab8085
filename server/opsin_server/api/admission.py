"""Who may start work: nobody while the server drains, and only so many at a time."""

from __future__ import annotations

import asyncio

from opsin_server.api.cancellation import CancelScope
from opsin_server.errors import Unavailable


class Draining(Unavailable):
    code = "draining"


class Saturated(Unavailable):
    code = "saturated"


class Admission:
    """Counts the requests in flight: fetching, waiting in the engine's queue, or running."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_flight: set[CancelScope] = set()
        self._undrained: set[CancelScope] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    def __len__(self) -> int:
        return len(self._in_flight)

    def check(self) -> None:
        """Raises Draining or Saturated: before a body is read, and again before the first byte is fetched for it."""
        if self.draining:
            raise Draining("The server is shutting down and takes no new work")
        if len(self._in_flight) >= self._limit:
            raise Saturated(f"{len(self._in_flight)} requests are in flight; the limit is {self._limit} (--max-queue)")

    def admit(self, drained: bool = True) -> CancelScope:
        """The caller gives it back with `release`. drained: whether a server that drains lets it finish."""
        self.check()
        scope = CancelScope()
        self._in_flight.add(scope)
        if not drained:
            self._undrained.add(scope)
        self._idle.clear()
        return scope

    def release(self, scope: CancelScope) -> None:
        self._in_flight.discard(scope)
        self._undrained.discard(scope)
        if not self._in_flight:
            self._idle.set()

    def drain(self) -> None:
        self.draining = True
        for scope in list(self._undrained):
            scope.end(Draining("The server is shutting down"))

    async def idle(self) -> None:
        """Returns when nothing is in flight."""
        await self._idle.wait()

    def end_all(self, reason: Exception) -> None:
        for scope in list(self._in_flight):
            scope.end(reason)
