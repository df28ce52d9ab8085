"""The signals that end a server. What was ignored when this process started stays ignored: that is how `nohup` keeps a
server from the end of its terminal (SIGHUP), and a script keeps Ctrl-C from what it started with `&` (SIGINT)."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def heeded() -> tuple[signal.Signals, ...]:
    """SIGTERM always: whoever supervises a server has no other polite way to end it."""
    others = (number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN)
    return (signal.SIGTERM, *others)


@contextmanager
def signals_raise() -> Iterator[None]:
    """Within it a signal leaves as Ctrl-C does by itself, so that what was begun is removed."""
    if threading.current_thread() is not threading.main_thread():  # where Python takes no signals
        yield
        return
    numbers = [number for number in heeded() if number != signal.SIGINT]
    before = [signal.signal(number, lambda number, _: sys.exit(128 + number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
