"""Tools for models whose chat template shows none: they are described in the system message, and calls and their
results are written as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from opsin_server.text.conversation import Message, Part, TextPart, ToolCall

HOW = (
    "You can call functions. These are the functions, one JSON object in each line:\n<tools>\n{tools}\n</tools>\n"
    "To call one, write a JSON object with its name and its arguments:\n"
    '<tool_call>\n{{"name": "the function\'s name", "arguments": {{"an argument": "its value"}}}}\n</tool_call>'
)
BETWEEN = "\n\n"


def spelled_out(messages: Sequence[Message], tools: Sequence[str]) -> list[Message]:
    """tools: as JSON; none: only what was called before is spelled out."""
    turns = [_spelled(message) for message in messages]
    if not tools:
        return turns
    how = HOW.format(tools="\n".join(tools))
    if turns and turns[0].role == "system":
        text = BETWEEN.join([*(part.text for part in turns[0].parts if isinstance(part, TextPart)), how])
        return [replace(turns[0], parts=(TextPart(text),)), *turns[1:]]
    return [Message("system", (TextPart(how),), is_string=True), *turns]


def _spelled(message: Message) -> Message:
    if message.role == "tool":
        parts: tuple[Part, ...] = (TextPart("<tool_response>\n"), *message.parts, TextPart("\n</tool_response>"))
        if message.is_string:
            parts = (TextPart("".join(part.text for part in parts if isinstance(part, TextPart))),)
        return Message("user", parts, is_string=message.is_string)
    if not message.tool_calls:
        return message
    text = "".join(part.text for part in message.parts if isinstance(part, TextPart))
    calls = [f"<tool_call>\n{_json(call)}\n</tool_call>" for call in message.tool_calls]
    spelled = "\n".join([*([text] if text else []), *calls])
    return replace(message, parts=(TextPart(spelled),), tool_calls=())


def _json(call: ToolCall) -> str:
    return f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {call.arguments}}}'
