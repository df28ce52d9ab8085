"""What goes out on /v1/messages, field by field as Anthropic names them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from opsin_server.api.schemas.chat_response import encode

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class TextContent(msgspec.Struct):
    text: str
    type: str = "text"
    citations: None = None


class ThinkingContent(msgspec.Struct):
    """signature: Anthropic's word for its own; nothing is signed here."""

    thinking: str
    signature: str = ""
    type: str = "thinking"


class ToolUse(msgspec.Struct):
    id: str
    name: str
    input: dict[str, Any] = {}
    type: str = "tool_use"


class MessageUsage(msgspec.Struct):
    """input_tokens: of the prompt, those that no cache had."""

    input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0


class MessageAnswer(msgspec.Struct):
    id: str
    model: str
    content: list[Any]  # of the blocks above
    usage: MessageUsage
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    type: str = "message"
    role: str = "assistant"


class TokensCount(msgspec.Struct):
    input_tokens: int


def named_event(kind: str, **fields: Any) -> bytes:
    """With its name, as Anthropic's are."""
    return b"event: " + kind.encode() + b"\ndata: " + encode({"type": kind, **fields}) + b"\n\n"
