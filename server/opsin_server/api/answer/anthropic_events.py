"""An answer on /v1/messages: whole, or as Anthropic's events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from opsin_server.api.answer.event_stream import Events, EventStream
from opsin_server.api.answer.generation import Generation
from opsin_server.api.answer.output_text import Piece
from opsin_server.api.cancellation import CancelScope
from opsin_server.api.middleware.anthropic import error_body
from opsin_server.api.schemas.messages_response import (
    MessageAnswer,
    MessageUsage,
    StopReason,
    TextContent,
    ThinkingContent,
    ToolUse,
    named_event,
)
from opsin_server.errors import OpsinError
from opsin_server.text.tool_reader import ToolCallDelta

REASONS: dict[str, StopReason] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


Content = TextContent | ThinkingContent | ToolUse


async def message(generation: Generation) -> MessageAnswer:
    """The whole answer. A call that was cut before its arguments were whole is left out of it."""
    blocks = list[Content]()
    arguments = dict[int, str]()  # of the calls, by their place among the blocks
    last = Piece()
    async for last in generation.pieces():
        if last.thoughts:
            _last(blocks, ThinkingContent).thinking += last.thoughts
        if last.text:
            _last(blocks, TextContent).text += last.text
        for call in last.calls:
            if call.id is not None:
                arguments[len(blocks)] = ""
                blocks.append(_tool_use(call))
            arguments[len(blocks) - 1] += call.arguments
    inputs = {place: _object(text) for place, text in arguments.items()}
    for place, found in inputs.items():
        call_block = blocks[place]
        assert isinstance(call_block, ToolUse)
        call_block.input = found or {}
    answer = _answer(generation)
    answer.content = [block for place, block in enumerate(blocks) if inputs.get(place, {}) is not None]
    calls = any(isinstance(block, ToolUse) for block in answer.content)
    answer.stop_reason, answer.stop_sequence = _ending(last, calls)
    return answer


_Said = TypeVar("_Said", TextContent, ThinkingContent)


def _last(blocks: list[Content], kind: type[_Said]) -> _Said:
    """The block that goes on, or a new one."""
    if blocks and isinstance(blocks[-1], kind):
        return blocks[-1]
    block = kind("")
    blocks.append(block)
    return block


class MessageStream(EventStream):
    """The same, as it comes: text and calls are blocks, one after the other."""

    def __init__(
        self,
        generation: Generation,
        cancellation: CancelScope,
        held: AsyncExitStack,
        request_id: str,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(generation, cancellation, held, False, False, headers)
        self._request_id = request_id
        self._index = -1  # of the last block that was begun
        self._open: str | None = None  # the type of the block that goes on
        self._inputs = list[str]()  # of the calls

    async def _events(self) -> AsyncIterator[Events]:
        opening = True
        async for piece in self._generation.pieces():
            data = b""
            if opening:  # (only now it is known what the cache had of the prompt)
                data = named_event("message_start", message=_answer(self._generation)) + named_event("ping")
                opening = False
            data += self._said(piece) + (self._closing_of(piece) if self._generation.ended else b"")
            yield Events(data, self._generation.ended)

    def _said(self, piece: Piece) -> bytes:
        data = b""
        if piece.thoughts:
            data += b"" if self._open == "thinking" else self._begin("thinking", ThinkingContent(""))
            data += self._delta("thinking_delta", thinking=piece.thoughts)
        if piece.text:
            data += b"" if self._open == "text" else self._begin("text", TextContent(""))
            data += self._delta("text_delta", text=piece.text)
        for call in piece.calls:
            if call.id is not None:
                data += self._begin("tool_use", _tool_use(call))
                self._inputs.append("")
            self._inputs[-1] += call.arguments
            data += self._delta("input_json_delta", partial_json=call.arguments) if call.arguments else b""
        return data

    def _begin(self, kind: str, block: Content) -> bytes:
        ended = self._end()
        self._index, self._open = self._index + 1, kind
        return ended + named_event("content_block_start", index=self._index, content_block=block)

    def _end(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return named_event("content_block_stop", index=self._index)

    def _delta(self, kind: str, **fields: str) -> bytes:
        return named_event("content_block_delta", index=self._index, delta={"type": kind, **fields})

    def _closing_of(self, piece: Piece) -> bytes:
        reason, stop = _ending(piece, any(_object(text) is not None for text in self._inputs))
        delta = {"stop_reason": reason, "stop_sequence": stop}
        ending = named_event("message_delta", delta=delta, usage=_usage(self._generation))
        return self._end() + ending + named_event("message_stop")

    def _last_words(self, error: OpsinError) -> bytes:
        said = error_body(error, self._request_id)
        return named_event("error", error=said["error"], request_id=said["request_id"])


def _answer(generation: Generation) -> MessageAnswer:
    return MessageAnswer(generation.who.id, generation.who.model, [], _usage(generation))


def _usage(generation: Generation) -> MessageUsage:
    used = generation.usage()
    cached = used.prompt_tokens_details.cached_tokens
    return MessageUsage(used.prompt_tokens - cached, cached, used.completion_tokens)


def _ending(piece: Piece, calls: bool) -> tuple[StopReason, str | None]:
    """calls: whether there is a call whose input is whole."""
    if piece.finish == "stop" and piece.stop is not None:
        return "stop_sequence", piece.stop
    reason = REASONS[piece.finish or "stop"]
    return "end_turn" if reason == "tool_use" and not calls else reason, None


def _tool_use(call: ToolCallDelta) -> ToolUse:
    """With Anthropic's word in front of its id."""
    return ToolUse((call.id or "").replace("call_", "toolu_"), call.name or "")


def _object(arguments: str) -> dict[str, Any] | None:
    try:
        found = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
