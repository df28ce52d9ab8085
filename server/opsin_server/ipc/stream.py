"""What the engine gives one request, as its reader takes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from opsin_server.errors import BadRequest, EngineFailed
from opsin_server.ipc.messages import Output


class Stream:
    """The outputs of one request, in order. Ends after one whose finish is set; raises EngineFailed when the engine
    could not compute the request, or died, and BadRequest where it would never be able to."""

    def __init__(self, request_id: str, cancel: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._cancel = cancel
        self._waiting: list[Output] = []
        self._arrived = asyncio.Event()
        self._error: str | None = None
        self._over = False

    def push(self, output: Output) -> None:
        self._waiting.append(output)
        self._arrived.set()

    def fail(self, message: str) -> None:
        self._error = message
        self._arrived.set()

    async def __aiter__(self) -> AsyncIterator[Output]:
        while not self._over:
            await self._arrived.wait()
            self._arrived.clear()
            if self._waiting:
                output = merge(self._waiting)
                self._waiting = []
                if output.finish == "error":
                    self._over = True
                    words = output.error or "the engine could not compute this request"
                    raise BadRequest(words, code=output.code) if output.code else EngineFailed(words)
                self._over = output.finish is not None
                yield output
            if self._error is not None and not self._over:
                self._over = True
                raise EngineFailed(self._error)

    def cancel(self) -> None:
        """Tells the engine that nobody reads on. Does nothing after the end, or twice."""
        if not self._over:
            self._over = True
            self._arrived.set()
            self._cancel(self.request_id)


def merge(outputs: list[Output]) -> Output:
    """What a slow reader missed, as one output."""
    if len(outputs) == 1:
        return outputs[0]
    last = outputs[-1]
    return Output(
        last.request_id,
        tuple(i for o in outputs for i in o.ids),
        tuple(p for o in outputs for p in o.logprobs),
        last.finish,
        last.error,
        max(o.cached_tokens for o in outputs),
        max(o.queue_seconds for o in outputs),
        max(o.adapter_tier for o in outputs),
        last.embedding,
        last.code,
        last.end,
        tuple(p for o in outputs for p in o.prompt),
    )
