"""A conversation before it has any model's form: filled by api/wire, read by the rest of this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from opsin_plugins.spec import ImageBudget

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class TextPart:
    text: str


@dataclass(frozen=True)
class ImagePart:
    """source: URL or data URL. param: the JSON path of this part in the request, for errors. demanded: the budget is
    the client's own number, which a family with one size cannot keep."""

    source: str
    budget: ImageBudget
    param: str
    demanded: bool = False


Part = TextPart | ImagePart


@dataclass(frozen=True)
class Message:
    role: Role
    parts: tuple[Part, ...]


def image_parts(messages: Sequence[Message]) -> list[ImagePart]:
    """In the order in which their pixels are handed to `PromptEncoder.encode`."""
    return [part for message in messages for part in message.parts if isinstance(part, ImagePart)]


def map_texts(messages: Sequence[Message], change: Callable[[str], str]) -> list[Message]:
    """The same conversation with every text changed."""

    def changed(part: Part) -> Part:
        return TextPart(change(part.text)) if isinstance(part, TextPart) else part

    return [replace(message, parts=tuple(map(changed, message.parts))) for message in messages]
