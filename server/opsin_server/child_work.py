"""How long a process that was started here has worked, and who ended it: a busy machine is no request's fault."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

from opsin_server.errors import Unavailable

FROM_OUTSIDE = tuple(-number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
_T = TypeVar("_T")


async def within_work(awaited: Awaitable[_T], pid: int, seconds: float, patience: float, busy: str) -> _T:
    """What a process gives before it has worked for so many seconds; else TimeoutError. Raises Unavailable with the
    sentence `busy` where it does not come to that work while `patience` seconds pass."""
    task, most, began = asyncio.ensure_future(awaited), cpu_seconds(pid) + seconds, time.monotonic()
    left = seconds
    try:
        while not (await asyncio.wait({task}, timeout=max(left, 0.02)))[0]:
            work, wait = most - cpu_seconds(pid), began + patience - time.monotonic()
            if work <= 0:
                raise TimeoutError
            if wait <= 0:
                raise Unavailable(busy)
            left = min(work, wait)
        return task.result()
    finally:
        task.cancel()


def says_work() -> bool:
    """Whether this system says how long a process has worked."""
    return Path("/proc/self/stat").exists()


def cpu_seconds(pid: int) -> float:
    """That a process has worked, none where it has ended; where a system does not say it: that have passed."""
    if not says_work():
        return time.monotonic()
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
