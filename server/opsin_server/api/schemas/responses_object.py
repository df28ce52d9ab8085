"""What goes out on /v1/responses: the response, its items and its usage, as OpenAI's Responses API names them."""

from __future__ import annotations

import secrets
import string
from typing import Any

from opsin_server.api.schemas.chat_response import Usage
from opsin_server.api.schemas.responses import ResponsesRequest
from opsin_server.errors import OpsinError

LETTERS = string.ascii_letters + string.digits
TOKEN = 24  # characters that a response's id has behind its prefix, and the ids of its items as well
RESPONSE = "resp_"


def new_response_id() -> str:
    return RESPONSE + "".join(secrets.choice(LETTERS) for _ in range(TOKEN))


def item_id(prefix: str, response_id: str, number: int, side: str) -> str:
    """Of item `number` of a response's input ("i") or output ("o"): it says where the item is kept."""
    return f"{prefix}_{response_id.removeprefix(RESPONSE)}{side}{number}"


def new_response(
    body: ResponsesRequest, model: str, response_id: str, created: int, temperature: float, top_p: float, *, kept: bool
) -> dict[str, Any]:
    """One that has not begun. model, temperature, top_p: those that act. kept: whether it will be."""
    text = {} if body.text is None or body.text.format is None else body.text.format.model_dump(by_alias=True)
    known = {name: value for name, value in text.items() if value is not None}
    return {
        "id": response_id,
        "object": "response",
        "created_at": created,
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": kept,
        "temperature": temperature,
        "text": {"format": known or {"type": "text"}, "verbosity": "medium"},
        "tool_choice": _choice(body),
        "tools": [_tool(tool.model_dump()) for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": top_p,
        "truncation": "disabled",
        "usage": None,
        "user": None,
    }


def _choice(body: ResponsesRequest) -> Any:
    choice = body.tool_choice or "auto"
    return choice if isinstance(choice, str) else {"type": "function", "name": choice.name}


def _tool(given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in ("type", "name", "description", "parameters", "strict")}


def described_usage(usage: Usage) -> dict[str, Any]:
    thoughts = usage.completion_tokens_details
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.prompt_tokens_details.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": thoughts.reasoning_tokens if thoughts else 0},
        "total_tokens": usage.total_tokens,
    }


def described_error(error: OpsinError) -> dict[str, Any]:
    """code: one of those that OpenAI's clients know; the message says which failure it was."""
    return {"code": "server_error", "message": error.message}


def message_item(own_id: str) -> dict[str, Any]:
    """One that has not begun."""
    return {"id": own_id, "type": "message", "status": "in_progress", "role": "assistant", "content": []}


def text_part() -> dict[str, Any]:
    return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}


def reasoning_item(own_id: str) -> dict[str, Any]:
    return {"id": own_id, "type": "reasoning", "status": "in_progress", "summary": [], "content": []}


def thoughts_part() -> dict[str, Any]:
    return {"type": "reasoning_text", "text": ""}


def call_item(own_id: str, call_id: str, name: str) -> dict[str, Any]:
    return {
        "id": own_id, "type": "function_call", "status": "in_progress", "arguments": "", "call_id": call_id,
        "name": name,
    }  # fmt: skip
