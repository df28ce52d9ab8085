"""A response as server-sent events. A failure after the status line is its last event, and a proper end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack

from opsin_server.api.answer.event_stream import EventStream
from opsin_server.api.answer.generation import Generation
from opsin_server.api.answer.response_events import ResponseEvents, written
from opsin_server.api.cancellation import CancelScope
from opsin_server.errors import OpsinError


class ResponseStream(EventStream):
    fails_with_an_end = True

    def __init__(
        self,
        generation: Generation,
        events: ResponseEvents,
        cancellation: CancelScope,
        held: AsyncExitStack,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(generation, cancellation, held, False, False, headers)
        self._response_events = events

    async def _events(self) -> AsyncIterator[bytes]:
        async for group in self._response_events.groups():
            yield written(group)

    def _last_words(self, error: OpsinError) -> bytes:
        return written(self._response_events.failed(error))
