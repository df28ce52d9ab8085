"""Whose turn it is to train: so many at once, in the order in which they came."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Told = Callable[[str, int], Awaitable[None]]


class JobQueue:
    """most: jobs that train at the same time. told: hears the place of a job that has to wait, from 1 on, and each
    change of it."""

    def __init__(self, most: int, told: Told) -> None:
        self._most, self._told, self._going = most, told, 0
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    @property
    def counts(self) -> tuple[int, int]:
        """Jobs that train, and that wait."""
        return self._going, len(self._waiting)

    @asynccontextmanager
    async def turn(self, job_id: str) -> AsyncIterator[None]:
        if self._going >= self._most:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            entry = (job_id, future)
            self._waiting.append(entry)
            await self._told(job_id, len(self._waiting))
            try:
                await future
            except asyncio.CancelledError:
                if entry in self._waiting:
                    self._waiting.remove(entry)
                else:
                    self._end()
                raise
        else:
            self._going += 1
        try:
            yield
        finally:
            self._end()
            for place, (waiting, _) in enumerate(list(self._waiting), 1):
                await self._told(waiting, place)

    def leave(self, job_id: str) -> None:
        """A job that waits does so no longer: its turn comes at once, and it finds out that it was stopped."""
        for entry in [entry for entry in self._waiting if entry[0] == job_id]:
            self._waiting.remove(entry)
            self._going += 1
            entry[1].set_result(None)

    def _end(self) -> None:
        self._going -= 1
        while self._waiting and self._going < self._most:
            _, future = self._waiting.popleft()
            if not future.done():
                self._going += 1
                future.set_result(None)
