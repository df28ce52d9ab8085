"""An event loop that goes on only as far as a test says, in one thread: every interleaving can be asked for again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

ENDLESS = 20_000  # ticks that nothing needs
TICK_SECONDS = 0.001  # of the loop's own time


class _Inline(ThreadPoolExecutor):
    """Runs what it is given at once, in the caller's thread; and nothing any more once its process is `dead`."""

    dead = False

    def submit(self, call: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        if self.dead:
            raise asyncio.CancelledError
        future: Future[Any] = Future()
        try:
            future.set_result(call(*args, **named))
        except Exception as error:
            future.set_exception(error)
        return future


class _Clocked(asyncio.SelectorEventLoop):
    """Its time passes with its ticks alone."""

    now = 0.0

    def time(self) -> float:
        return self.now


class SteppedLoop:
    """What asyncio.to_thread is given runs to its end in between two ticks, as a transaction of a database does."""

    def __init__(self) -> None:
        self._loop, self._inline = _Clocked(), _Inline(1)
        self._loop.set_default_executor(self._inline)
        self._loop.set_task_factory(self._make)
        self._tasks: list[asyncio.Task[Any]] = []  # in the order in which they were made

    def _make(self, loop: asyncio.AbstractEventLoop, work: Any, **named: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **named)
        self._tasks.append(task)
        return task

    def tick(self, count: int = 1) -> None:
        """Runs what is ready now, so many times."""
        for _ in range(count):
            self._loop.now += TICK_SECONDS
            self._loop.call_soon(self._loop.stop)
            self._loop.run_forever()

    def begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self._loop.create_task(work)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """To its end, and whatever else goes on as far as that lets it."""
        task = self.begin(work)
        self.until(task.done)
        return task.result()

    def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(ENDLESS):
            if condition():
                return
            self.tick()
        raise AssertionError(f"nothing comes of {[str(task.get_coro()) for task in self.tasks()]}")

    def tasks(self) -> list[asyncio.Task[Any]]:
        self._tasks = [task for task in self._tasks if not task.done()]
        return self._tasks

    def kill(self) -> None:
        """As a process is killed: nothing that goes on in it reads or writes anything any more."""
        self._inline.dead = True
        while tasks := self.tasks():
            for task in tasks:
                task.cancel()
            self.tick()
        self._loop.close()
