"""What must last, written although a disk is full or a database away for the moment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from opsin_server.errors import StorageFailed

log = logging.getLogger("opsin.jobs")

RETRY_SECONDS = 1.0

Result = TypeVar("Result")


def never() -> None:
    """Nothing ends it."""


async def lasting(job_id: str, act: Callable[[], Awaitable[Result]], check: Callable[[], None] = never) -> Result:
    """Tried again for as long as it takes: a job that fails for that would lose all that it has learned, and one that
    could not even say so would stay as it is until a start of the server. check: what it raises ends that."""
    waits = False
    while True:
        try:
            return await act()
        except StorageFailed as error:
            if not waits:
                log.warning("job %s waits: %s", job_id, error.message)
            waits = True
            check()
            await asyncio.sleep(RETRY_SECONDS)


async def lasting_in_thread(job_id: str, act: Callable[[], Result], check: Callable[[], None] = never) -> Result:
    return await lasting(job_id, lambda: asyncio.to_thread(act), check)
