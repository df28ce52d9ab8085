"""Items of a conversation as they are kept and shown, and read again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opsin_server.api.schemas.responses_items import InputItem, InputPart
from opsin_server.api.schemas.responses_object import RESPONSE, TOKEN, item_id, text_part, thoughts_part
from opsin_server.storage.records import StoredAnswer

PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
    "compaction": "cmp",
}


def kept_item(item: InputItem, response_id: str, number: int) -> dict[str, Any]:
    """Item `number` of a response's input."""
    own = {"id": item_id(PREFIXES[item.kind], response_id, number, "i"), "type": item.kind, "status": "completed"}
    if item.kind == "compaction":
        return {"id": own["id"], "type": item.kind, "encrypted_content": item.encrypted_content}
    if item.kind == "function_call":
        return {**own, "call_id": item.call_id, "name": item.name, "arguments": item.arguments}
    if item.kind == "function_call_output":
        output = item.output if isinstance(item.output, str) else [_part(part) for part in item.output or ()]
        return {**own, "call_id": item.call_id, "output": output}
    if item.kind == "reasoning":
        return {**own, "summary": [], "content": [thoughts_part() | {"text": item.thoughts}]}
    said = [_text(item.content)] if isinstance(item.content, str) else [_part(part) for part in item.content or ()]
    if item.role == "assistant":
        said = [text_part() | {"text": part["text"]} for part in said]
    return {**own, "role": item.role, "content": said}


def read_kept(item: Mapping[str, Any]) -> InputItem:
    return InputItem.model_validate(dict(item))


def response_of_item(own_id: str) -> str | None:
    """The id of the response that an item's id names, if it has the form of one."""
    behind = own_id.partition("_")[2]
    return RESPONSE + behind[:TOKEN] if len(behind) > TOKEN else None


def find_item(stored: StoredAnswer, own_id: str) -> Mapping[str, Any] | None:
    items = (*stored.said, *stored.answer["output"])
    return next((item for item in items if item["id"] == own_id), None)


def _text(text: str) -> dict[str, Any]:
    return {"type": "input_text", "text": text}


def _part(part: InputPart) -> dict[str, Any]:
    if part.text is not None:
        return _text(part.text)
    known = part.model_dump(include={"type", "image_url", "file_id", "file_data"}, exclude_none=True)
    return {**known, "detail": part.detail or "auto"}
