"""A conversation before it has any model's form: made by `api.answer.submit`, read by the rest of this package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from opsin_plugins.spec import ImageBudget, VideoBudget

Role = Literal["system", "user", "assistant", "tool"]


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


@dataclass(frozen=True)
class VideoWish(VideoBudget):
    """said: where in the request each of it is said, by its name."""

    said: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class VideoPart:
    """source: URL or data URL of a file; or those of pictures, each of which is a frame. param: as of an image."""

    source: str | tuple[str, ...]
    budget: VideoWish
    param: str

    def where(self, option: str | None) -> str:
        """For errors."""
        return dict(self.budget.said).get(option or "", self.param)


Part = TextPart | ImagePart | VideoPart


@dataclass(frozen=True)
class ToolCall:
    """What an assistant asked for. arguments: a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """reasoning: what an assistant thought before it said this, where a client sends it apart from the text.
    is_string: its content came as a string, not as a list of parts; it is then one text. tool_calls: an assistant's.
    tool_call_id: what a tool's message is the result of."""

    role: Role
    parts: tuple[Part, ...]
    reasoning: str | None = None
    is_string: bool = False
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


def visual_parts(messages: Sequence[Message]) -> list[ImagePart | VideoPart]:
    """In the order in which what was loaded of them is handed to `PromptEncoder.encode`."""
    return [part for message in messages for part in message.parts if not isinstance(part, TextPart)]


def image_parts(messages: Sequence[Message]) -> list[ImagePart]:
    return [part for part in visual_parts(messages) if isinstance(part, ImagePart)]


def video_parts(messages: Sequence[Message]) -> list[VideoPart]:
    return [part for part in visual_parts(messages) if isinstance(part, VideoPart)]


def texts(messages: Sequence[Message]) -> Iterator[str]:
    """All that the conversation says."""
    for message in messages:
        if message.reasoning is not None:
            yield message.reasoning
        for part in message.parts:
            if isinstance(part, TextPart):
                yield part.text
        for call in message.tool_calls:
            yield call.name
            yield call.arguments
