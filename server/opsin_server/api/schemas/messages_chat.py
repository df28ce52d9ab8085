"""A request of Anthropic's API as the chat request that asks for the same."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from opsin_server.api.schemas.chat_request import ChatRequest
from opsin_server.api.schemas.messages_blocks import Block, ImageSource, ResultBlock
from opsin_server.api.schemas.messages_request import (
    CountTokensRequest,
    InputMessage,
    MessagesRequest,
    MessagesTool,
    MessagesToolChoice,
)
from opsin_server.chat.describe_error import describe
from opsin_server.errors import OpsinError

ERROR = "Error: "  # in front of a result that is one
_SCHEMA = re.compile(r"(tools\[\d+\])\.function\.parameters")
_PLACE = re.compile(r"messages\[\d+\](\.content\[\d+\])?")


@dataclass
class ChatForm:
    """places: where the client wrote what is at each place of the chat's messages."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)

    def blame(self, error: OpsinError) -> OpsinError:
        """The error, speaking of the client's own fields."""
        if error.param is not None and (found := _PLACE.match(error.param)) is not None:
            error.param = self.places.get(found[0], "messages")
        if error.param is not None and (found := _SCHEMA.match(error.param)) is not None:
            own = f"{found[1]}.input_schema"
            error.message = error.message.replace(f"'{found[0]}", f"'{own}")
            error.param, error.args = own + error.param[found.end() :], (error.message,)
        return error

    def add(self, role: str, place: str, content: str | list[dict[str, Any]], **others: Any) -> None:
        """content: parts have a "place", which is taken out of them."""
        path = f"messages[{len(self.messages)}]"
        self.places[path] = place
        if not isinstance(content, str):
            for index, part in enumerate(content):
                self.places[f"{path}.content[{index}]"] = part.pop("place")
            if [part["type"] for part in content] in ([], ["text"]):  # as a client of OpenAI's would write it
                content = content[0]["text"] if content else ""
        self.messages.append({"role": role, "content": content, **others})


def to_chat(body: CountTokensRequest) -> tuple[ChatRequest, ChatForm]:
    """Raises BadRequest."""
    form = ChatForm()
    if isinstance(body.system, str):
        form.add("system", "system", body.system)
    elif body.system:
        form.add("system", "system", [_text(block.text, f"system[{i}]") for i, block in enumerate(body.system)])
    for number, message in enumerate(body.messages):
        _add_message(form, message, f"messages[{number}]")
    given = {
        "model": body.model,
        "messages": form.messages,
        "continue_final_message": body.messages[-1].role == "assistant",
        "tools": [_tool(tool) for tool in body.tools or ()] or None,
        **_choice(body.tool_choice),
        **_drawn(body),
    }
    if body.thinking is not None:
        given["chat_template_kwargs"] = {"enable_thinking": False}
    if body.output_config is not None and body.output_config.format is not None:
        schema = {"schema": body.output_config.format.schema_}
        given["response_format"] = {"type": "json_schema", "json_schema": schema}
    try:
        return ChatRequest.model_validate(given), form
    except ValidationError as error:
        raise form.blame(describe(error.errors(include_url=False)[0])) from None


def _drawn(body: CountTokensRequest) -> dict[str, Any]:
    if not isinstance(body, MessagesRequest):
        return {}
    same = {name: getattr(body, name) for name in ("max_tokens", "temperature", "top_p", "top_k", "stream")}
    return {**same, "stop": body.stop_sequences}


def _add_message(form: ChatForm, message: InputMessage, place: str) -> None:
    """A user's becomes the results of tools that it begins with, each a message, and what else it says."""
    if isinstance(message.content, str):
        form.add(message.role, place, message.content)
        return
    others: list[tuple[str, Block]] = []
    for index, block in enumerate(message.content):
        where = f"{place}.content[{index}]"
        if block.type == "tool_result":
            form.add("tool", where, _result(block, where), tool_call_id=block.tool_use_id)
        else:
            others.append((where, block))
    if others or message.role == "assistant":
        parts = [_part(block, where) for where, block in others if block.type in ("text", "image")]
        form.add(message.role, place, parts, **_thoughts_and_calls([block for _, block in others]))


def _thoughts_and_calls(blocks: Sequence[Block]) -> dict[str, Any]:
    thoughts = "".join(block.thinking for block in blocks if block.thinking is not None)
    calls = [
        {"id": block.id, "function": {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}}
        for block in blocks
        if block.type == "tool_use"
    ]
    return {"reasoning_content": thoughts or None, "tool_calls": calls or None}


def _result(block: Block, where: str) -> str | list[dict[str, Any]]:
    front = ERROR if block.is_error else ""
    if not isinstance(block.content, list):
        return front + (block.content or "")
    parts = [_part(part, f"{where}.content[{index}]") for index, part in enumerate(block.content)]
    if front and parts and parts[0]["type"] == "text":
        parts[0]["text"] = front + parts[0]["text"]
    elif front:
        parts.insert(0, _text(front, where))
    return parts


def _part(block: Block | ResultBlock, where: str) -> dict[str, Any]:
    if block.source is None:
        return _text(block.text or "", where)
    return {"type": "image_url", "image_url": _image(block.source), "place": f"{where}.source"}


def _text(text: str, place: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "place": place}


def _image(source: ImageSource) -> dict[str, Any]:
    if source.type == "file":
        return {"file_id": source.file_id}
    return {"url": source.url if source.type == "url" else f"data:{source.media_type};base64,{source.data}"}


def _tool(tool: MessagesTool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    given = {**function, "strict": tool.strict}
    return {"type": "function", "function": {name: value for name, value in given.items() if value is not None}}


def _choice(choice: MessagesToolChoice | None) -> dict[str, Any]:
    if choice is None:
        return {}
    modes: dict[str, Any] = {"auto": "auto", "any": "required", "none": "none"}
    modes["tool"] = {"type": "function", "function": {"name": choice.name}}
    return {"tool_choice": modes[choice.type], "parallel_tool_calls": not choice.disable_parallel_tool_use}
