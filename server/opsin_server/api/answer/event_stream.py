"""An answer as server-sent events, the way OpenAI sends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, suppress
from types import MappingProxyType
from typing import NamedTuple

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from opsin_server.api.answer.generation import Generation
from opsin_server.api.answer.output_text import Piece
from opsin_server.api.cancellation import CancelScope, ClientGone
from opsin_server.api.middleware import error_responses
from opsin_server.api.schemas.chat_response import CallDelta, ChunkChoice, Delta, FunctionDelta, event
from opsin_server.errors import OpsinError
from opsin_server.text.tool_reader import ToolCallDelta

STATUS_SECONDS = 0.5  # so long the status line waits for the first token: a failure until then is still a real 5xx
PING_SECONDS = 10.0  # between comments that keep a reader's timeout from running out before the first token
LAST_WORDS_SECONDS = 1.0  # for the error event, to a client that may have stopped reading
DONE = b"data: [DONE]\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class Events(NamedTuple):
    """What goes out together. last: with the end of the body, so that a client that reads the last event and leaves has
    not left before the end."""

    data: bytes
    last: bool = False


class EventStream(Response):
    """Sends a generation, and closes what it holds at the end. A failure after the status line becomes an error event,
    and the body is never finished: a clean end would look like success. fails_with_an_end: unless the last event says
    whether it is one."""

    media_type = "text/event-stream"
    fails_with_an_end = False

    def __init__(
        self,
        generation: Generation,
        cancellation: CancelScope,
        held: AsyncExitStack,
        include_usage: bool,
        usage_in_every_chunk: bool,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(headers={**HEADERS, **headers})
        del self.headers["content-length"]
        self._generation, self._cancellation, self._held = generation, cancellation, held
        self._include_usage, self._usage_in_every_chunk = include_usage, usage_in_every_chunk
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await self._send_all(scope, receive, send)

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        groups = paced(self._events())
        try:
            async with self._cancellation.attended(receive):
                async for events in groups:
                    await self._send(send, events)
                    if events.last:
                        break  # (from here on the server has nothing but a disconnect to say)
        except ClientGone:
            raise
        except Exception as failure:
            if not self._started:
                raise
            error = error_responses.known_error(failure, scope)
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_SECONDS):
                    await self._send(send, Events(self._last_words(error), last=self.fails_with_an_end))
            raise error from failure
        async for _ in groups:  # what they read from comes to its end, too
            pass

    def _last_words(self, error: OpsinError) -> bytes:
        return event(error_responses.body(error))

    async def _send(self, send: Send, events: Events) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if events.data or events.last:
            await send({"type": "http.response.body", "body": events.data, "more_body": not events.last})

    async def _events(self) -> AsyncIterator[Events]:
        """The first bytes hold the role of each choice and the first text, the last ones a finish, the usage and
        [DONE]."""
        opening = b"".join(
            self._event(ChunkChoice(Delta(role="assistant", content=""), index=index))
            for index in range(len(self._generation.choices))
        )
        async for piece in self._generation.pieces():
            data = opening + self._text(piece)
            if piece.finish is not None:
                data += self._event(ChunkChoice(Delta(), None, piece.finish, piece.choice))
            if self._generation.ended:
                data += self._closing()
            yield Events(data, self._generation.ended)
            opening = b""

    def _text(self, piece: Piece) -> bytes:
        data = b""
        if piece.thoughts:
            data += self._event(ChunkChoice(Delta(reasoning_content=piece.thoughts), None, None, piece.choice))
        if piece.text or piece.logprobs:
            logprobs = self._generation.logprobs(piece.logprobs)
            data += self._event(ChunkChoice(Delta(content=piece.text), logprobs, None, piece.choice))
        for call in piece.calls:
            data += self._event(ChunkChoice(Delta(tool_calls=[_call(call)]), None, None, piece.choice))
        return data

    def _event(self, choice: ChunkChoice) -> bytes:
        chunk = self._generation.chunk(choice)
        if self._include_usage:
            chunk.usage = self._generation.usage() if self._usage_in_every_chunk else None
        return event(chunk)

    def _closing(self) -> bytes:
        if not self._include_usage:
            return DONE
        chunk = self._generation.chunk()
        chunk.usage = self._generation.usage()
        return event(chunk) + DONE


async def paced(events: AsyncIterator[Events]) -> AsyncIterator[Events]:
    """The events; while the first is awaited, nothing (once, which lets the status line go) and then pings."""
    first = asyncio.ensure_future(anext(events))
    wait, filler = STATUS_SECONDS, b""
    try:
        while not (await asyncio.wait({first}, timeout=wait))[0]:
            yield Events(filler)
            wait, filler = PING_SECONDS, b": ping\n\n"
    finally:
        first.cancel()
    yield first.result()
    async for group in events:
        yield group


def _call(delta: ToolCallDelta) -> CallDelta:
    if delta.id is None:
        return CallDelta(delta.index, function=FunctionDelta(arguments=delta.arguments))
    return CallDelta(delta.index, delta.id, "function", FunctionDelta(delta.name, delta.arguments))
