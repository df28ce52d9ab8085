"""A database and a disk that fail for as long as a test says."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from opsin_server.errors import StorageFailed
from opsin_server.storage.state import State

# full: whatever is written fails before it is; late: when it is to last; away: reading fails as well; blobs: only files
# cannot be written, since they lie elsewhere.
Kind = Literal["full", "late", "away", "blobs"]


class Faults:
    def __init__(self) -> None:
        self.kind: Kind | None = None
        self.left = 0  # how many more calls fail; below 0: all, until it is set again
        self.met = 0

    def set(self, kind: Kind | None, count: int = -1) -> None:
        self.kind, self.left = kind, count

    def _fails(self, *kinds: Kind) -> bool:
        if self.kind not in kinds or self.left == 0:
            return False
        self.left -= 1
        self.met += 1
        return True

    def within(self, state: State) -> None:
        """Has them met by all that reads or writes through a state."""
        database, place = state.database, state.files.place
        read, write = database.read, database.write
        refused = "what must last cannot be read or written at the moment"

        @contextmanager
        def reading() -> Iterator[Any]:
            if self._fails("away"):
                raise StorageFailed(refused)
            with read() as session:
                yield session

        @contextmanager
        def writing() -> Iterator[Any]:
            if self._fails("away", "full"):
                raise StorageFailed(refused)
            with write() as session:
                yield session
                if self._fails("late"):
                    session.flush()
                    raise StorageFailed(refused)  # (within the transaction, which is undone)

        def placing(file: Path, digest: str) -> None:
            self.disk()
            place(file, digest)

        database.read, database.write, state.files.place = reading, writing, placing  # type: ignore[method-assign]

    def disk(self) -> None:
        """Raises OSError where a disk that is full would."""
        if self._fails("full"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def store(self) -> None:
        """Raises StorageFailed where what lasts cannot be written."""
        if self._fails("full", "away", "blobs"):
            raise StorageFailed("what must last cannot be read or written at the moment")

    @contextmanager
    def off(self) -> Iterator[None]:
        """For whoever looks on from outside."""
        kind, self.kind = self.kind, None
        yield
        self.kind = kind
