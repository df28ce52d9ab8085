"""Work in a thread of its own, so that no step waits for it, and results for which an engine can wait."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

Wanted = TypeVar("Wanted")
Result = TypeVar("Result")
LEAVE_SECONDS = 1.0


class BesideSteps(Generic[Wanted, Result]):
    """work: raises nothing, or whoever waits for its result would wait for ever."""

    def __init__(self, name: str, work: Callable[[Wanted], Result]) -> None:
        self._work = work
        self._wanted: SimpleQueue[tuple[Wanted] | None] = SimpleQueue()
        self._done: SimpleQueue[Result] = SimpleQueue()
        self._reader, self._writer = os.pipe()  # a byte a result, so that the engine can wait for one
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Readable while there are results to take."""
        return self._reader

    def request(self, wanted: Wanted) -> None:
        self._wanted.put((wanted,))

    @property
    def has_results(self) -> bool:
        return not self._done.empty()

    def results(self) -> list[Result]:
        """What has come to its end since the last call."""
        found = []
        while not self._done.empty():
            os.read(self._reader, 1)
            found.append(self._done.get())
        return found

    def close(self) -> None:
        """Work that hangs, as on a disk, is not waited for."""
        self._wanted.put(None)
        self._thread.join(LEAVE_SECONDS)
        if not self._thread.is_alive():
            os.close(self._reader)
            os.close(self._writer)

    def _run(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            result = self._work(*wanted)
            os.write(self._writer, b"\0")  # (first: who takes the result also takes the byte)
            self._done.put(result)
