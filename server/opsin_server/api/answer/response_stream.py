"""A response as server-sent events. A failure after the status line is its last event, and a proper end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack

from opsin_server.api.answer.event_stream import Events, EventStream
from opsin_server.api.answer.response_events import ResponseEvents, written
from opsin_server.api.cancellation import CancelScope
from opsin_server.errors import OpsinError


class ResponseStream(EventStream):
    fails_with_an_end = True

    def __init__(
        self,
        events: ResponseEvents,
        cancellation: CancelScope,
        held: AsyncExitStack,
        headers: Mapping[str, str],
        *,
        obfuscated: bool,
    ) -> None:
        super().__init__(events.generation, cancellation, held, False, False, headers)
        self._response_events, self._obfuscated = events, obfuscated

    async def _events(self) -> AsyncIterator[Events]:
        async for group in self._response_events.groups():
            yield Events(written(group, obfuscated=self._obfuscated), self._generation.ended)

    def _last_words(self, error: OpsinError) -> bytes:
        return written(self._response_events.failed(error))
