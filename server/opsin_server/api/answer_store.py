"""The answers that a running server keeps, where it is told to keep any."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from opsin_server.answer_config import AnswerConfig
from opsin_server.api.chores import Chores
from opsin_server.errors import BadRequest
from opsin_server.storage.records import TENANT, AnswerKind, NewAnswer, Page, StoredAnswer
from opsin_server.storage.state import State

# Of the messages or items before an answer, as JSON, with the pictures that came as data: URLs in them.
MAX_SAID_BYTES = 4 * 2**20
DAY = 24 * 3600.0
EXPIRE_SECONDS = 600.0  # between looks at what has expired


class AnswerStore:
    def __init__(self, config: AnswerConfig, state: State) -> None:
        self._records, self._most, self._seconds = state.answers, config.store_max, config.store_days * DAY
        self._chores = Chores()

    def open(self) -> None:
        self._chores.begin(EXPIRE_SECONDS, self._expire)

    async def close(self) -> None:
        await self._chores.end()

    async def add(self, new: NewAnswer) -> None:
        """It is kept when this returns, also if who waits for it is cancelled meanwhile."""
        await asyncio.to_thread(self._records.add, TENANT, new, self._most)

    async def get(self, kind: AnswerKind, answer_id: str) -> StoredAnswer:
        return await asyncio.to_thread(self._records.get, TENANT, kind, answer_id, self._seconds)

    async def page(
        self,
        kind: AnswerKind,
        *,
        after: str | None,
        limit: int,
        newest_first: bool,
        model: str | None,
        metadata: Mapping[str, str],
    ) -> Page[StoredAnswer]:
        return await asyncio.to_thread(
            lambda: self._records.page(
                TENANT, kind, self._seconds, after=after, limit=limit, newest_first=newest_first, model=model,
                metadata=metadata,
            )
        )  # fmt: skip

    async def relabel(self, kind: AnswerKind, answer_id: str, metadata: Mapping[str, str]) -> StoredAnswer:
        return await asyncio.to_thread(self._records.relabel, TENANT, kind, answer_id, metadata, self._seconds)

    async def delete(self, kind: AnswerKind, answer_id: str) -> None:
        await asyncio.to_thread(self._records.delete, TENANT, kind, answer_id, self._seconds)

    async def _expire(self) -> None:
        await asyncio.to_thread(self._records.expire, self._seconds)


def size_of(said: Sequence[Mapping[str, Any]]) -> int:
    return len(msgspec.json.encode(said))


def check_said(said: Sequence[Mapping[str, Any]]) -> None:
    """Before anything is generated for what could not be kept. Raises BadRequest."""
    if (size := size_of(said)) > MAX_SAID_BYTES:
        raise BadRequest(
            f"Invalid value for 'store': the messages have {size:,} bytes with the pictures in them, and at most "
            f"{MAX_SAID_BYTES:,} are kept. Name pictures by URL or file_id, or let 'store' be false",
            param="store",
        )
