"""What a server prints must never stop it or hold it up: a log's disk is full, a pipe's reader reads no more."""

from __future__ import annotations

import io
import os
import select
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any, TextIO

from opsin_server.streams import ESCAPES

MAX_WAITING = 2**20  # characters that wait for a slow reader; what comes then is left out
LAST_SECONDS = 1.0  # for what waits when the process ends


class Printer(io.TextIOBase):
    """Stands in for a standard stream. A write returns at once: a thread hands the text on, drops what cannot be
    written, and says how many lines were left out while nobody read."""

    def __init__(self, stream: TextIO, max_waiting: int = MAX_WAITING) -> None:
        self._stream, self._descriptor = stream, stream.fileno()  # (kept, so that the descriptor stays open)
        self._max_waiting = max_waiting
        self._waiting: deque[str] = deque()
        self._length = self._left_out = 0
        self._writing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._changed:
            if self._length + len(text) > self._max_waiting:
                self._left_out += text.count("\n")
                return len(text)
            self._waiting.append(text)
            self._length += len(text)
            if self._thread is None:
                self._thread = threading.Thread(target=self._hand_on, name="opsin-printer", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return len(text)

    def drain(self, seconds: float = LAST_SECONDS) -> None:
        """Waits until all is written, but no longer than this."""
        end = time.monotonic() + seconds
        with self._changed:
            while (self._waiting or self._writing) and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)

    def _hand_on(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                while not self._waiting:
                    self._changed.wait()
                text = "".join(self._waiting)
                if self._left_out:
                    text += f"({self._left_out} lines were left out here: they were not read in time)\n"
                self._waiting.clear()
                self._length = self._left_out = 0
                self._writing = True
            self._write_all(text.encode(self._stream.encoding, ESCAPES))

    def _write_all(self, data: bytes) -> None:
        """What is full or closed, or a terminal that is gone, takes nothing; it may take the next."""
        rest, room = memoryview(data), select.poll()  # (`select` knows no descriptor above 1,023)
        room.register(self._descriptor, select.POLLOUT)
        with suppress(OSError):
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:  # another process that shares the stream wants it so
                    room.poll()


def install() -> None:
    """For both standard streams of this process, from now on."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        try:
            stream.flush()
            setattr(sys, name, Printer(stream))
        except (OSError, ValueError):  # not a file: something stands in for it already
            continue


def drain() -> None:
    """What a process says last should be read."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Printer):
            stream.drain()
