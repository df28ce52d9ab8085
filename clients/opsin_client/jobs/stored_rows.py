"""Rows to train on, from the chat completions that a server keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletion

PAGE = 100


class StoredRowsError(Exception):
    """One sentence."""


@dataclass(frozen=True)
class Wanted:
    """Which of the kept answers: those of a model, and with all of these pairs in their metadata."""

    model: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)


def read_wanted(filters: Sequence[str]) -> Wanted:
    """filters: as metadata.KEY=VALUE, or model=NAME. Raises StoredRowsError."""
    model, metadata = None, {}
    for text in filters:
        name, equals, value = text.partition("=")
        if equals and name == "model":
            model = value
        elif equals and name.startswith("metadata.") and name != "metadata.":
            metadata[name.removeprefix("metadata.")] = value
        else:
            raise StoredRowsError(f"--from-stored {text!r}: write metadata.KEY=VALUE or model=NAME")
    return Wanted(model, metadata)


def upload_rows(client: openai.OpenAI, wanted: Wanted) -> tuple[str, int, int]:
    """The file's id, how many rows it has, and how many answers were left out: those with tools or without a word.
    Raises StoredRowsError where there is no row."""
    count = left_out = 0
    with TemporaryFile() as file:
        for answer in _answers(client, wanted):
            row = _row(client, answer)
            if row is None:
                left_out += 1
                continue
            file.write(json.dumps(row).encode() + b"\n")
            count += 1
        if not count:
            raise StoredRowsError(
                f"no kept answer can be trained on ({left_out} were left out: they have tools, or no text)"
            )
        file.seek(0)
        return client.files.create(file=("stored.jsonl", file), purpose="fine-tune").id, count, left_out


def _answers(client: openai.OpenAI, wanted: Wanted) -> Iterator[ChatCompletion]:
    query: dict[str, Any] = {"metadata": wanted.metadata} if wanted.metadata else {}
    if wanted.model is not None:
        query["model"] = wanted.model
    yield from client.chat.completions.list(limit=PAGE, **query)


def _row(client: openai.OpenAI, answer: ChatCompletion) -> dict[str, Any] | None:
    """None for what is not trained on."""
    said = answer.choices[0].message
    before = [message.to_dict() for message in client.chat.completions.messages.list(answer.id, limit=PAGE)]
    if not said.content or "tools" in answer.to_dict() or any(_has_tools(message) for message in before):
        return None
    messages = [{"role": one["role"], "content": one.get("content_parts") or one.get("content")} for one in before]
    return {"messages": [*messages, {"role": "assistant", "content": said.content}]}


def _has_tools(message: dict[str, Any]) -> bool:
    return message["role"] == "tool" or bool(message.get("tool_calls"))
