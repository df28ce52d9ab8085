"""Whose turn it is to train: so many at once, and of those that wait the oldest first."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeAlias

Told = Callable[[str, int], Awaitable[None]]
Order: TypeAlias = tuple[bool, float]  # of a job: whether it has yet to begin, and when it was made


class _Waiting(NamedTuple):
    job_id: str
    order: Order
    turn: asyncio.Future[None]


class JobQueue:
    """most: jobs that train at the same time. told: hears the place of a job that has to wait, from 1 on, and each
    change of it."""

    def __init__(self, most: int, told: Told) -> None:
        self._most, self._told, self._going = most, told, 0
        self._waiting: list[_Waiting] = []  # in their order

    @property
    def counts(self) -> tuple[int, int]:
        """Jobs that train, and that wait."""
        return self._going, len(self._waiting)

    @asynccontextmanager
    async def turn(self, job_id: str, order: Order) -> AsyncIterator[None]:
        """A free place is whoever's comes first; of those that wait, it is the first's in their order."""
        if self._going >= self._most:
            await self._wait(job_id, order)
        else:
            self._going += 1
        try:
            yield
        finally:
            self._end()
            await self._tell(0)

    def leave(self, job_id: str) -> None:
        """A job that waits does so no longer: its turn comes at once, and it finds out that it was stopped."""
        for entry in [entry for entry in self._waiting if entry.job_id == job_id]:
            self._waiting.remove(entry)
            self._going += 1
            entry.turn.set_result(None)

    async def _wait(self, job_id: str, order: Order) -> None:
        entry = _Waiting(job_id, order, asyncio.get_running_loop().create_future())
        place = bisect_right(self._waiting, order, key=lambda one: one.order)
        self._waiting.insert(place, entry)
        try:
            await self._tell(place)
            await entry.turn
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            else:
                self._end()
            raise

    async def _tell(self, first: int) -> None:
        """first: from which on places have changed."""
        for place, waiting in list(enumerate(self._waiting, 1))[first:]:
            await self._told(waiting.job_id, place)

    def _end(self) -> None:
        self._going -= 1
        while self._waiting and self._going < self._most:
            turn = self._waiting.pop(0).turn
            if not turn.done():
                self._going += 1
                turn.set_result(None)
