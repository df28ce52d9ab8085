"""The blocks of which messages of Anthropic's API are made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from opsin_server.chat.fields import Ignored, Strict, missing, only, wrong
from opsin_server.chat.messages import known

BlockType = Literal["text", "image", "tool_use", "tool_result", "thinking"]
SourceType = Literal["base64", "url", "file"]
MediaType = Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
# What a block of each type must hold, and what it may.
_NEEDS = {
    "text": ("text",),
    "image": ("source",),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id",),
    "thinking": ("thinking",),
}
_MAY = {"tool_result": ("content", "is_error")}
_HELD = tuple(dict.fromkeys(name for names in (*_NEEDS.values(), *_MAY.values()) for name in names))
_SOURCES = {"base64": ("media_type", "data"), "url": ("url",), "file": ("file_id",)}


def _kind(value: Any) -> str | None:
    return {str: "~string", list: "~parts", type(None): "~null"}.get(type(value))


TEXT_OR_BLOCKS = Discriminator(
    _kind,
    custom_error_type="wrong",
    custom_error_message="{message}",
    custom_error_context={"message": "must be a string or a list of blocks"},
)


class ImageSource(Strict):
    type: Annotated[SourceType, known(SourceType, "sources")]
    media_type: Annotated[MediaType | None, Field(description="with `data`; a file says itself what it is")] = None
    data: Annotated[str | None, Field(description="in base64")] = None
    url: str | None = None
    file_id: Annotated[str | None, Field(description="of an image that was uploaded to /v1/files")] = None

    @model_validator(mode="after")
    def _holds_its_type(self) -> ImageSource:
        needed = _SOURCES[self.type]
        for name in ("media_type", "data", "url", "file_id"):
            _check(self, f'a source of type "{self.type}"', name, name in needed, name in needed)
        return self


class ResultBlock(Strict):
    """A part of a tool's result."""

    type: Annotated[Literal["text", "image"], known(Literal["text", "image"], "blocks of a result")]
    text: str | None = None
    source: ImageSource | None = None

    # These cannot change an answer.
    cache_control: Ignored = None

    # These would change the answer, and pass only where they would not.
    citations: Annotated[None, only([])] = None
    transformations: Annotated[None, only({}, {"oversized_image": "downsize"})] = None

    @model_validator(mode="after")
    def _holds_its_type(self) -> ResultBlock:
        for name in ("text", "source"):
            its = name == ("text" if self.type == "text" else "source")
            _check(self, f'a block of type "{self.type}"', name, its, its)
        return self


Result = Annotated[
    Annotated[str, Tag("~string")] | Annotated[list[ResultBlock], Tag("~parts")] | Annotated[None, Tag("~null")],
    TEXT_OR_BLOCKS,
]


class Block(Strict):
    """A part of a message."""

    type: Annotated[BlockType, known(BlockType, "blocks")]
    text: str | None = None
    source: Annotated[ImageSource | None, Field(description="of an image, in a user's message")] = None
    id: Annotated[str | None, Field(min_length=1, max_length=256, description="of a call")] = None
    name: Annotated[str | None, Field(min_length=1, max_length=256, description="of the tool that is called")] = None
    input: Annotated[dict[str, Any] | None, Field(description="of a call")] = None
    tool_use_id: Annotated[str | None, Field(max_length=256, description="the call whose result this is")] = None
    content: Annotated[Result, Field(description="of a result: a string, or blocks of text and images")] = None
    is_error: Annotated[bool | None, Field(description='of a result. true: "Error: " stands in front of it')] = None
    thinking: Annotated[str | None, Field(description="an assistant's; some chat templates show it")] = None

    # These cannot change an answer.
    cache_control: Ignored = None
    signature: Ignored = None

    # These would change the answer, and pass only where they would not.
    caller: Annotated[None, only({"type": "direct"})] = None
    citations: Annotated[None, only([])] = None
    toolset_name: Annotated[None, only()] = None
    transformations: Annotated[None, only({}, {"oversized_image": "downsize"})] = None

    @model_validator(mode="after")
    def _holds_its_type(self) -> Block:
        needed = _NEEDS[self.type]
        for name in _HELD:
            _check(
                self,
                f'a block of type "{self.type}"',
                name,
                name in needed,
                name in (*needed, *_MAY.get(self.type, ())),
            )
        return self


def _check(given: Strict, what: str, name: str, must: bool, may: bool) -> None:
    """Raises where a field that must be there is missing, or one that may not is there."""
    value = getattr(given, name)
    if must and value is None:
        raise missing(name)
    if not may and value is not None:
        raise wrong(f'{what} must not have "{name}"', name)


class TextBlock(Strict):
    """A part of the system's text."""

    type: Annotated[Literal["text"], known(Literal["text"], "blocks of a system's text")]
    text: str

    # These cannot change an answer.
    cache_control: Ignored = None

    # These would change the answer, and pass only where they would not.
    citations: Annotated[None, only([])] = None
