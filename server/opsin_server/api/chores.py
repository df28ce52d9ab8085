"""What a server does every so often."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger("opsin.chores")


async def every(seconds: float, chore: Callable[[], Awaitable[None]]) -> None:
    """A chore that fails is worth no server: it is tried again."""
    while True:
        try:
            await chore()
        except Exception:
            log.exception("%s failed", chore.__name__)
        await asyncio.sleep(seconds)
