"""The signals that end a server. What was ignored when this process started stays ignored: that is how `nohup` keeps a
server from the end of its terminal (SIGHUP), and a script keeps Ctrl-C from what it started with `&` (SIGINT)."""

from __future__ import annotations

import signal


def heeded() -> tuple[signal.Signals, ...]:
    """SIGTERM always: whoever supervises a server has no other polite way to end it."""
    others = (number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN)
    return (signal.SIGTERM, *others)
