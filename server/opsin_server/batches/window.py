"""The lines that are run now, of all batches together: enough to fill the engine's batch, and no more.

Tenants have their turns, a line each; of one tenant the oldest batch has them until it has no more. What fails because
the engine died or is not there is run again. A line at which the engine fails time after time may be why: it is run
with no other beside it, and if it fails alone as well, that is its answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from opsin_server.batch_metrics import BatchMetrics
from opsin_server.batches.answers import Answer, Answerer, LineRequest
from opsin_server.errors import EngineFailed, StorageFailed, Unavailable

log = logging.getLogger("opsin.batches")

AHEAD = 16  # lines that are prepared, or wait in the engine: it never lacks one, and few pictures are held
RETRY_SECONDS = 1.0
ALONE_AFTER = 2  # failures of the engine
GIVE_UP_AFTER = 4


class Source(Protocol):
    """A batch. `next`: its next line, in their order; None: there are no more. `answered` returns when it may be given
    another. `failure`: the answer that a failure is, which the engine gives time after time."""

    @property
    def tenant(self) -> str: ...
    @property
    def endpoint(self) -> str: ...

    async def next(self) -> LineRequest | None: ...
    async def answered(self, request: LineRequest, answer: Answer) -> None: ...


class Window:
    """most: lines in flight. failure: what is written of a line that the engine cannot compute."""

    def __init__(
        self, run: Answerer, failure: Callable[[EngineFailed], Answer], most: int, metrics: BatchMetrics
    ) -> None:
        self._run, self._failure, self._metrics = run, failure, metrics
        self._places, self._ahead = asyncio.Semaphore(most), asyncio.Semaphore(AHEAD)
        self._sources: list[Source] = []  # whose turn it is first
        self._tasks: dict[asyncio.Task[None], Source] = {}
        self._changed, self._free = asyncio.Event(), asyncio.Condition()
        self._running = self._suspects = 0
        self._dispatcher = asyncio.create_task(self._dispatch())
        metrics.watch_lines(lambda: len(self._tasks))

    async def close(self) -> None:
        await _cancelled(self._dispatcher, *self._tasks)

    def add(self, source: Source) -> None:
        self._sources.append(source)
        self._changed.set()

    async def remove(self, source: Source) -> None:
        """None of its lines is in flight when this returns."""
        if source in self._sources:
            self._sources.remove(source)
        await _cancelled(*(task for task, of in self._tasks.items() if of is source))

    async def _dispatch(self) -> None:
        while True:
            await self._ahead.acquire()
            await self._places.acquire()
            source, request = await self._next()
            task = asyncio.create_task(self._answer(source, request))
            self._tasks[task] = source
            task.add_done_callback(self._ended)

    async def _next(self) -> tuple[Source, LineRequest]:
        while True:
            while self._sources:
                source = self._sources[0]
                request = await source.next()
                if source not in self._sources:  # (it was taken away meanwhile)
                    continue
                if request is None:
                    self._sources.remove(source)
                    continue
                own = [one for one in self._sources if one.tenant == source.tenant]
                self._sources = [one for one in self._sources if one.tenant != source.tenant] + own
                return source, request
            self._changed.clear()
            await self._changed.wait()

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a line could not be run", exc_info=error)

    async def _answer(self, source: Source, request: LineRequest) -> None:
        """started: the engine computes it, so that another may be prepared."""
        held = [self._ahead]

        def started() -> None:
            while held:
                held.pop().release()

        try:
            await source.answered(request, await self._until_answered(source.endpoint, request.body, started))
        finally:
            started()
            self._places.release()

    async def _until_answered(self, endpoint: str, body: bytes, started: Callable[[], None]) -> Answer:
        failures = 0
        while True:
            try:
                async with self._turn(alone=failures >= ALONE_AFTER):
                    return await self._run(endpoint, body, started)
            except EngineFailed as error:
                failures += 1
                if failures == GIVE_UP_AFTER:
                    return self._failure(error)
            except (Unavailable, StorageFailed):
                pass
            self._metrics.retried.inc()
            await asyncio.sleep(RETRY_SECONDS)

    @asynccontextmanager
    async def _turn(self, *, alone: bool) -> AsyncIterator[None]:
        async with self._free:
            self._suspects += alone
            try:
                await self._free.wait_for(lambda: not (self._running if alone else self._suspects))
            except asyncio.CancelledError:
                self._suspects -= alone
                raise
            self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            self._suspects -= alone
            async with self._free:
                self._free.notify_all()


async def _cancelled(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
