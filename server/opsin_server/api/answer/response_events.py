"""An answer as the events of OpenAI's Responses API, each with its number, in their order. The whole answer is what the
last of them holds."""

from __future__ import annotations

import copy
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from opsin_server.api.answer.generation import Generation
from opsin_server.api.answer.output_text import Piece
from opsin_server.api.schemas.chat_response import encode
from opsin_server.api.schemas.responses_object import (
    call_item,
    described_error,
    described_usage,
    item_id,
    message_item,
    reasoning_item,
    text_part,
    thoughts_part,
)
from opsin_server.errors import OpsinError
from opsin_server.text.tool_reader import ToolCallDelta

Event = dict[str, Any]
PADDED_BYTES = 32  # whose multiple a delta has with its padding


class ResponseEvents:
    """response: one that has not begun; it becomes the answer. keep: is awaited before the last event tells that the
    answer is complete."""

    def __init__(
        self, generation: Generation, response: dict[str, Any], keep: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        self.generation, self.response, self._keep = generation, response, keep
        self._number = 0
        self._item: dict[str, Any] | None = None  # the one that is being written
        self._arguments: list[str] = []
        self._text: list[str] = []

    async def groups(self) -> AsyncIterator[list[Event]]:
        """Those that go out together. Raises EngineFailed."""
        group = [self._whole("created"), self._whole("in_progress")]
        async for piece in self.generation.pieces():
            if piece.thoughts:
                group += self._of_thoughts(piece.thoughts)
            group += self._of_text(piece)
            for call in piece.calls:
                group += self._of_call(call)
            if piece.finish is not None:
                group += self._ends(incomplete=piece.finish == "length", cuts_call=piece.cuts_call)
                await self._keep(self.response)
                group.append(self._whole(self.response["status"]))
            yield group
            group = []

    async def whole(self) -> dict[str, Any]:
        async for _ in self.groups():
            pass
        return self.response

    def failed(self, error: OpsinError) -> list[Event]:
        """What a client hears of an answer that ends before its time."""
        said = self._event("error", code=error.code, message=error.message, param=error.param)
        self.response.update(status="failed", completed_at=None, error=described_error(error))
        return [said, self._whole("failed")]

    # ------------------------------------------------------------------------------------------------ the items

    def _of_thoughts(self, thoughts: str) -> Iterator[Event]:
        if self._item is None or self._item["type"] != "reasoning":
            yield from self._begins_part(reasoning_item(self._own_id("rs")), thoughts_part())
        self._text.append(thoughts)
        yield self._event("response.reasoning_text.delta", **self._place(), content_index=0, delta=thoughts)

    def _of_text(self, piece: Piece) -> Iterator[Event]:
        if not piece.text and not piece.logprobs:
            return
        if self._item is None or self._item["type"] != "message":
            yield from self._begins_part(message_item(self._own_id("msg")), text_part())
        logprobs = self.generation.logprobs(piece.logprobs)
        known = [] if logprobs is None else logprobs.content
        self._text.append(piece.text)
        self._open["content"][0]["logprobs"] += known
        where = self._place()
        yield self._event("response.output_text.delta", **where, content_index=0, delta=piece.text, logprobs=known)

    def _of_call(self, delta: ToolCallDelta) -> Iterator[Event]:
        if delta.id is not None and delta.name is not None:
            yield from self._begins(call_item(self._own_id("fc"), delta.id, delta.name))
        if delta.arguments:
            self._arguments.append(delta.arguments)
            yield self._event("response.function_call_arguments.delta", **self._place(), delta=delta.arguments)

    @property
    def _open(self) -> dict[str, Any]:
        assert self._item is not None
        return self._item

    def _own_id(self, prefix: str) -> str:
        """Of the item that comes behind the one that is being written."""
        number = len(self.response["output"]) + (self._item is not None)
        return item_id(prefix, self.response["id"], number, "o")

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._open["id"], "output_index": len(self.response["output"])}

    def _begins(self, item: dict[str, Any]) -> Iterator[Event]:
        if self._item is not None:
            yield from self._done("completed")
        self._item = item
        added = copy.deepcopy(item)
        yield self._event("response.output_item.added", output_index=len(self.response["output"]), item=added)

    def _begins_part(self, item: dict[str, Any], part: dict[str, Any]) -> Iterator[Event]:
        yield from self._begins(item)
        yield self._event("response.content_part.added", **self._place(), content_index=0, part=copy.deepcopy(part))
        item["content"].append(part)

    def _done(self, status: str) -> Iterator[Event]:
        item, where = self._open, self._place()
        if item["type"] == "message":
            part = item["content"][0]
            part["text"] = "".join(self._text)
            text, logprobs = part["text"], part["logprobs"]
            yield self._event("response.output_text.done", **where, content_index=0, text=text, logprobs=logprobs)
            yield self._event("response.content_part.done", **where, content_index=0, part=part)
        elif item["type"] == "reasoning":
            part = item["content"][0]
            part["text"] = "".join(self._text)
            yield self._event("response.reasoning_text.done", **where, content_index=0, text=part["text"])
            yield self._event("response.content_part.done", **where, content_index=0, part=part)
        else:
            item["arguments"] = "".join(self._arguments)
            said = {"arguments": item["arguments"], "name": item["name"]}
            yield self._event("response.function_call_arguments.done", **where, **said)
        item["status"] = status
        yield self._event("response.output_item.done", output_index=where["output_index"], item=item)
        self.response["output"].append(item)
        self._item, self._text, self._arguments = None, [], []

    # ------------------------------------------------------------------------------------------------ the answer

    def _ends(self, *, incomplete: bool, cuts_call: bool) -> Iterator[Event]:
        if self._item is None and not self.response["output"]:  # it said nothing
            yield from self._begins_part(message_item(self._own_id("msg")), text_part())
        if self._item is not None:
            yield from self._done("incomplete" if incomplete or cuts_call else "completed")
        self.response["usage"] = described_usage(self.generation.usage())
        self.response["status"] = "incomplete" if incomplete else "completed"
        if incomplete:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self.response["completed_at"] = int(time.time())

    def _whole(self, what: str) -> Event:
        return self._event(f"response.{what}", response=dict(self.response, output=list(self.response["output"])))

    def _event(self, kind: str, **fields: Any) -> Event:
        number, self._number = self._number, self._number + 1
        return {"type": kind, "sequence_number": number, **fields}


def written(events: list[Event], *, obfuscated: bool = False) -> bytes:
    """obfuscated: with what hides how long each delta is."""
    if obfuscated:
        events = [event | _padding(event["delta"]) if "delta" in event else event for event in events]
    return b"".join(b"event: %s\ndata: %s\n\n" % (event["type"].encode(), encode(event)) for event in events)


def _padding(delta: str) -> dict[str, str]:
    missing = -len(delta.encode()) % PADDED_BYTES
    return {"obfuscation": secrets.token_hex(missing)[:missing]}
