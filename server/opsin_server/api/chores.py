"""What a server does every so often."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger("opsin.chores")


class Chores:
    """Those of one service, from its opening to its closing."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def begun(self) -> bool:
        return bool(self._tasks)

    def begin(self, seconds: float, chore: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.create_task(_every(seconds, chore)))

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


async def _every(seconds: float, chore: Callable[[], Awaitable[None]]) -> None:
    """A chore that fails is worth no server: it is tried again."""
    while True:
        try:
            await chore()
        except Exception:
            log.exception("%s failed", chore.__name__)
        await asyncio.sleep(seconds)
