"""A response that is kept, as the events of a stream: each part of it whole, in one delta."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from opsin_server.api.answer.response_events import Event

UNDONE: dict[str, Any] = {
    "status": "in_progress",
    "completed_at": None,
    "incomplete_details": None,
    "output": [],
    "usage": None,
}
KINDS = {"output_text": "response.output_text", "reasoning_text": "response.reasoning_text"}


def replayed(response: Mapping[str, Any], starting_after: int = -1) -> list[Event]:
    """Those whose number is greater. The numbers are the same each time, and not those of the stream as it was."""
    events = [{"type": kind, "sequence_number": n, **rest} for n, (kind, rest) in enumerate(_events(response))]
    return events[max(starting_after + 1, 0) :]


def _events(response: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    begun = {**response, **UNDONE}
    yield "response.created", {"response": begun}
    yield "response.in_progress", {"response": begun}
    for index, item in enumerate(response["output"]):
        where = {"item_id": item["id"], "output_index": index}
        empty: dict[str, Any] = {"arguments": ""} if item["type"] == "function_call" else {"content": []}
        begun_item = {**item, **empty, "status": "in_progress"}
        yield "response.output_item.added", {"output_index": index, "item": begun_item}
        yield from _of_call(item, where) if item["type"] == "function_call" else _of_parts(item, where)
        yield "response.output_item.done", {"output_index": index, "item": item}
    yield f"response.{response['status']}", {"response": response}


def _of_call(item: Mapping[str, Any], where: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    said = {"arguments": item["arguments"], "name": item["name"]}
    yield "response.function_call_arguments.delta", {**where, "delta": item["arguments"]}
    yield "response.function_call_arguments.done", {**where, **said}


def _of_parts(item: Mapping[str, Any], where: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for index, part in enumerate(item["content"]):
        at, kind = {**where, "content_index": index}, KINDS[part["type"]]
        logprobs = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
        nothing = {**part, "text": "", **{name: [] for name in logprobs}}
        yield "response.content_part.added", {**at, "part": nothing}
        yield f"{kind}.delta", {**at, "delta": part["text"], **logprobs}
        yield f"{kind}.done", {**at, "text": part["text"], **logprobs}
        yield "response.content_part.done", {**at, "part": part}
