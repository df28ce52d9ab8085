"""Rows of training files as OpenAI has them: the pictures in them, and the question that a row asks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_LINE = 2**28  # bytes: ten images of ten megabytes as base64 are fewer


@dataclass(frozen=True)
class Row:
    """value: None for a line that is no JSON object."""

    line: int
    value: dict[str, Any] | None

    @property
    def conversation(self) -> list[Any]:
        """The messages of a row, or of a preference's input."""
        if self.value is None:
            return []
        given = self.value.get("input") if "input" in self.value else self.value
        messages = given.get("messages") if isinstance(given, dict) else None
        return messages if isinstance(messages, list) else []

    @property
    def uses_tools(self) -> bool:
        if self.value is None:
            return False
        given = self.value.get("input") if isinstance(self.value.get("input"), dict) else self.value
        named = any(given.get(name) for name in ("tools", "functions"))  # type: ignore[union-attr]
        return named or any(isinstance(one, dict) and one.get("tool_calls") for one in self.conversation)


@dataclass(frozen=True)
class Question:
    """messages: up to the answer that the row has, which is the reference."""

    line: int
    messages: list[Any]
    reference: str


def read_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MOST_LINE):
            number += 1
            if line.strip():
                yield Row(number, _parsed(line))


def question_of(row: Row) -> Question | None:
    """None for a row that asks nothing."""
    messages = row.conversation
    if row.value is not None and "preferred_output" in row.value:
        preferred = row.value["preferred_output"]
        answer = preferred[0] if isinstance(preferred, list) and preferred else None
        return _question(row.line, messages, answer)
    last = next((i for i in reversed(range(len(messages))) if _role(messages[i]) == "assistant"), None)
    return None if last is None else _question(row.line, messages[:last], messages[last])


def picture_urls(row: Row) -> list[str]:
    """In order, with those that come again."""
    found: list[str] = []
    with_pictures(row.conversation, lambda url: found.append(url) or url)  # type: ignore[func-returns-value]
    return found


def with_pictures(messages: list[Any], change: Callable[[str], str]) -> list[Any]:
    """The same, with the URL of every picture changed."""
    return [_with_pictures(message, change) for message in messages]


def replaced(row: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A row with the URL of every picture changed."""
    if isinstance(row.get("input"), dict) and isinstance(row["input"].get("messages"), list):
        return {**row, "input": {**row["input"], "messages": with_pictures(row["input"]["messages"], change)}}
    if isinstance(row.get("messages"), list):
        return {**row, "messages": with_pictures(row["messages"], change)}
    return row


def text_of(message: Any) -> str:
    """What a message says, its parts of text joined."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))


def is_http(url: str) -> bool:
    return url[:8].lower().startswith(("http://", "https://"))


def _question(line: int, messages: list[Any], answer: Any) -> Question | None:
    asked = [message for message in messages if isinstance(message, dict)]
    if not asked or len(asked) < len(messages) or not isinstance(answer, dict):
        return None
    plain = [{name: value for name, value in message.items() if name != "weight"} for message in asked]
    return Question(line, plain, text_of(answer))


def _with_pictures(message: Any, change: Callable[[str], str]) -> Any:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return message
    return {**message, "content": [_changed(part, change) for part in content]}


def _changed(part: Any, change: Callable[[str], str]) -> Any:
    image = part.get("image_url") if isinstance(part, dict) else None
    if isinstance(image, str):
        return {**part, "image_url": change(image)}
    if isinstance(image, dict) and isinstance(image.get("url"), str):
        return {**part, "image_url": {**image, "url": change(image["url"])}}
    return part


def _role(message: Any) -> object:
    return message.get("role") if isinstance(message, dict) else None


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
