"""How a request's work ends before its time: its client leaves, or the server must stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.types import Receive


class ClientGone(Exception):
    """Nobody is left to answer."""


class CancelScope:
    """One admitted request's. What runs inside `attended` is cancelled at once by `end`, and the reason is raised."""

    def __init__(self) -> None:
        self._reason: Exception | None = None
        self._task: asyncio.Task[object] | None = None

    def end(self, reason: Exception) -> None:
        """The first reason counts."""
        if self._reason is None:
            self._reason = reason
            if self._task is not None:
                self._task.cancel()

    @asynccontextmanager
    async def attended(self, receive: Receive) -> AsyncIterator[None]:
        """Watches for the disconnect while the block runs; the request's body must have been read."""
        if self._reason is not None:
            raise self._reason
        task = self._task = asyncio.current_task()
        assert task is not None
        others = task.cancelling()
        watcher = asyncio.create_task(self._watch(receive))
        try:
            yield
        finally:
            self._task = None
            watcher.cancel()
            if self._reason is not None:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)  # where a cancellation lands that found no await in the block
                if task.uncancel() <= others:
                    raise self._reason from None

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.end(ClientGone())
