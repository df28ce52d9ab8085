"""What must last, written although a disk is full or a database away for the moment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from opsin_server.errors import StorageFailed

log = logging.getLogger("opsin.storage")

RETRY_SECONDS = 1.0

Result = TypeVar("Result")


def never() -> None:
    """Nothing ends it."""


async def lasting(what: str, act: Callable[[], Awaitable[Result]], check: Callable[[], None] = never) -> Result:
    """Tried again for as long as it takes: a job that fails for that would lose all that it has learned, and one that
    could not even say so would stay as it is until a start of the server. what: the id of the job or the batch. check:
    what it raises ends that."""
    waits = False
    while True:
        try:
            return await act()
        except StorageFailed as error:
            if not waits:
                log.warning("%s waits: %s", what, error.message)
            waits = True
            check()
            await asyncio.sleep(RETRY_SECONDS)


async def lasting_in_thread(what: str, act: Callable[[], Result], check: Callable[[], None] = never) -> Result:
    return await lasting(what, lambda: asyncio.to_thread(act), check)
