"""A message as clients send it: its fields, and the parts of its content."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from opsin_server.chat.fields import WHOLE, Ignored, Strict, Unread, missing, only, unsupported, wrong
from opsin_server.chat.finite import check_finite

Role = Literal["system", "developer", "user", "assistant", "tool"]
# What a part of each type must hold. The types with "input" and "output" are those of OpenAI's Responses API.
PartType = Literal[
    "text", "input_text", "output_text", "image_url", "input_image", "image", "file", "video_url", "video"
]
# One of these; the others: a field of their own name.
_HOLDS = {"input_text": ("text",), "output_text": ("text",), "input_image": ("image_url", "file_id")}
_HELD = ("text", "image_url", "image", "file", "file_id", "video_url", "video")
# Beside them.
_OF_VIDEOS = ("fps", "num_frames", "min_frames", "max_frames", "max_pixels", "total_pixels")


def known(literal: Any, noun: str) -> BeforeValidator:
    kinds: tuple[str, ...] = get_args(literal)
    words = ", ".join(f'"{kind}"' for kind in kinds)

    def check(value: Any) -> Any:
        if isinstance(value, str) and value not in kinds:
            raise unsupported(value, f"the {noun} accepted are {words}")
        return value

    return BeforeValidator(check)


def _object_of_url(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


Pixels = Annotated[int, Field(ge=1, lt=2**31), WHOLE]
Detail = Literal["auto", "low", "high", "original"] | None


class ImageURL(Strict):
    """max_pixels: at most so many after resizing; not of OpenAI's API."""

    url: Annotated[str | None, Field(description="or file_id")] = None
    file_id: Annotated[str | None, Field(description="of an image that was uploaded to /v1/files")] = None
    detail: Detail = None
    max_pixels: Pixels | None = None
    format: Ignored = None  # a file says itself what it is

    @model_validator(mode="after")
    def _one_source(self) -> ImageURL:
        if self.url is None and self.file_id is None:
            raise missing("url")
        if self.url is not None and self.file_id is not None:
            raise wrong("give a url or a file_id, not both", "file_id")
        return self


Frames = Annotated[int, Field(ge=1, le=10_000), WHOLE]
FramesPerSecond = Annotated[float, Field(ge=0.001, le=1000)]


class VideoFields(Strict):
    """Which frames of a video are taken, and how large they are. Where it is sent as frames, `fps` says how many were
    taken of a second."""

    fps: Annotated[
        FramesPerSecond | None,
        Field(description="of a video: frames taken of each second; of one sent as frames: that were"),
    ] = None
    num_frames: Annotated[
        Frames | None, Field(description="of a video, in place of `fps`: frames taken of all of it")
    ] = None
    min_frames: Annotated[Frames | None, Field(description="of a video, with `fps`: at least so many are taken")] = None
    max_frames: Annotated[Frames | None, Field(description="of a video, with `fps`: at most so many are taken")] = None
    max_pixels: Annotated[Pixels | None, Field(description="of a video: at most so many in a frame after resizing")] = (
        None
    )
    total_pixels: Annotated[
        Annotated[int, Field(ge=1, lt=2**40), WHOLE] | None,
        Field(description="of a video: at most so many in all frames together after resizing"),
    ] = None

    @model_validator(mode="after")
    def _samples_one_way(self) -> VideoFields:
        if self.fps is not None and self.num_frames is not None:
            raise wrong("give fps or num_frames, not both", "num_frames")
        least, most = self.min_frames or 1, self.max_frames or math.inf
        if least > most:
            raise wrong(f"{least} are more than 'max_frames', {most}", "min_frames")
        if self.num_frames is not None and not least <= self.num_frames <= most:
            raise wrong(f"{self.num_frames} are not within 'min_frames' and 'max_frames'", "num_frames")
        return self


class VideoURL(Strict):
    url: Annotated[str | None, Field(description="or file_id")] = None
    file_id: Annotated[str | None, Field(description="of a video that was uploaded to /v1/files")] = None

    @model_validator(mode="after")
    def _one_source(self) -> VideoURL:
        if self.url is None and self.file_id is None:
            raise missing("url")
        if self.url is not None and self.file_id is not None:
            raise wrong("give a url or a file_id, not both", "file_id")
        return self


class FilePart(Strict):
    """An image that was uploaded, or a data: URL of one."""

    file_id: Annotated[str | None, Field(description="of an image that was uploaded to /v1/files")] = None
    file_data: Annotated[str | None, Field(description="a data: URL of an image")] = None
    filename: Ignored = None  # a file says itself what it is

    @model_validator(mode="after")
    def _one_source(self) -> FilePart:
        if self.file_id is None and self.file_data is None:
            raise missing("file_id")
        if self.file_id is not None and self.file_data is not None:
            raise wrong("give a file_id or file_data, not both", "file_data")
        if self.file_data is not None and self.file_data[:5].lower() != "data:":
            raise wrong("it must be a data: URL of an image", "file_data")
        return self


_KINDS = {str: "~string", list: "~parts", type(None): "~null"}
Video = Annotated[
    Annotated[str, Tag("~string")]
    | Annotated[Annotated[list[str], Field(min_length=1)], Tag("~parts")]
    | Annotated[None, Tag("~null")],
    Discriminator(
        lambda value: _KINDS.get(type(value)),
        custom_error_type="wrong",
        custom_error_message="{message}",
        custom_error_context={"message": "must be a URL, or a list of the URLs of its frames"},
    ),
]


class ContentPart(VideoFields):
    """One part of a message."""

    type: Annotated[PartType, known(PartType, "content parts")]
    text: str | None = None
    image_url: Annotated[
        ImageURL | None,
        Field(description="or its URL alone"),
        BeforeValidator(_object_of_url, json_schema_input_type=ImageURL | str | None),
    ] = None
    image: str | None = None
    file: FilePart | None = None
    file_id: Annotated[str | None, Field(description='of "input_image"')] = None
    video_url: Annotated[
        VideoURL | None,
        Field(description="or its URL alone"),
        BeforeValidator(_object_of_url, json_schema_input_type=VideoURL | str | None),
    ] = None
    video: Annotated[Video, Field(description="a URL; or the URLs of pictures that are its frames")] = None
    detail: Annotated[Detail, Field(description='of "input_image"')] = None

    # These cannot change an answer.
    id: Ignored = None
    index: Ignored = None
    uuid: Ignored = None
    annotations: Ignored = None
    logprobs: Ignored = None
    cache_control: Ignored = None
    prompt_cache_breakpoint: Ignored = None

    @property
    def is_text(self) -> bool:
        return self.text is not None

    @model_validator(mode="after")
    def _holds_its_type(self) -> ContentPart:
        held = _HOLDS.get(self.type, (self.type,))
        given = [name for name in _HELD if getattr(self, name) is not None]
        if not any(name in held for name in given):
            needed = " or ".join(f'"{name}"' for name in held)
            raise wrong(f'a part of type "{self.type}" needs {needed}', held[0])
        if other := next((name for name in given if name not in held), None):
            raise wrong(f'a part of type "{self.type}" must not have "{other}"', other)
        if len(given) > 1:
            raise wrong(f'a part of type "{self.type}" has one of "{given[0]}" and "{given[1]}"', given[1])
        if self.detail is not None and self.type != "input_image":
            raise wrong(f'a part of type "{self.type}" must not have "detail"', "detail")
        if self.type not in ("video", "video_url"):
            for name in _OF_VIDEOS:
                if getattr(self, name) is not None:
                    raise wrong(f'a part of type "{self.type}" must not have "{name}"', name)
        return self


# Of unions, here and in requests of other routes; in the location of an error they are no field's name.
TAGS = frozenset({*_KINDS.values(), "~tokens", "~token_lists", "~part", "~object"})
_NO_CONTENT = "must be a string or a list of content parts"
Content = Annotated[
    Annotated[str, Tag("~string")] | Annotated[list[ContentPart], Tag("~parts")] | Annotated[None, Tag("~null")],
    Discriminator(
        lambda value: _KINDS.get(type(value)),
        custom_error_type="wrong",
        custom_error_message="{message}",
        custom_error_context={"message": _NO_CONTENT},
    ),
]


_unread = Unread()
# Some servers give it as an object of their own, which no template reads. It may stand on any message.
Thoughts = Annotated[
    str | None,
    BeforeValidator(lambda value: value if isinstance(value, str) else _unread(value), json_schema_input_type=Any),
]


def check_arguments(arguments: str) -> None:
    """For a validator of what holds them: a JSON object, or nothing."""
    try:
        found = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise wrong("it must be a JSON object", "arguments")
    check_finite(found, "arguments")


class CalledFunction(Strict):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: Annotated[str, Field(description="a JSON object; nothing stands for an empty one")] = "{}"

    @model_validator(mode="after")
    def _holds_an_object(self) -> CalledFunction:
        check_arguments(self.arguments)
        return self


class MessageToolCall(Strict):
    """A call that an assistant made."""

    id: Annotated[str, Field(min_length=1, max_length=256)]
    function: CalledFunction
    type: Annotated[None, only("function")] = None
    index: Ignored = None


THOUGHTS = "an assistant's; some chat templates show it. Ignored where it is no string, or another role's"


class ChatMessage(Strict):
    """A message as clients send it. An answer, ours or another server's, is accepted as it came."""

    role: Annotated[Role, known(Role, "roles")]
    content: Annotated[Content, Field(description="an assistant's may be null, empty or left out")] = None

    # What an assistant thought before it said this, by the names that servers give it. The first that is there counts.
    reasoning_content: Annotated[
        Thoughts,
        Field(description=THOUGHTS),
    ] = None
    reasoning: Annotated[Thoughts, Field(description="the same")] = None
    thinking: Annotated[Thoughts, Field(description="the same")] = None

    tool_calls: Annotated[list[MessageToolCall] | None, Field(max_length=128, description="an assistant's")] = None
    tool_call_id: Annotated[
        str | None, Field(max_length=256, description="a tool's: the id of the call whose result this is")
    ] = None

    # These cannot change an answer: no chat template sees them.
    name: Ignored = None
    id: Ignored = None
    status: Ignored = None
    timestamp: Ignored = None
    created_at: Ignored = None
    createdAt: Ignored = None  # noqa: N815 (as the Vercel AI SDK spells it)
    metadata: Ignored = None
    annotations: Ignored = None
    cache_control: Ignored = None
    uuid: Ignored = None
    reasoning_details: Ignored = None
    thinking_blocks: Ignored = None
    provider_specific_fields: Ignored = None

    # These would change the answer, and pass only where they would not.
    type: Annotated[None, only("message")] = None
    refusal: Annotated[None, only("")] = None
    audio: Annotated[None, only()] = None
    images: Annotated[None, only([])] = None
    function_call: Annotated[None, only()] = None
    prefix: Annotated[None, only(False)] = None

    @model_validator(mode="after")
    def _holds_what_its_role_may(self) -> ChatMessage:
        self._check_tools()
        if self.role == "assistant":
            if not self.content:
                return self
        elif "content" not in self.model_fields_set:
            raise missing("content")
        elif self.content is None:
            raise wrong(_NO_CONTENT, "content")
        elif self.content == []:
            raise wrong("must hold at least one part", "content")
        for index, part in enumerate(self.content if isinstance(self.content, list) else ()):
            if not part.is_text and self.role not in ("user", "tool"):
                where = f"content[{index}].type"
                raise wrong(
                    f'"{part.type}" is accepted in user messages only, and in results of tools, not from "{self.role}"',
                    where,
                )
        return self

    def _check_tools(self) -> None:
        if self.tool_calls and self.role != "assistant":
            raise wrong(f'only the assistant\'s messages may have them, not "{self.role}"', "tool_calls")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            if self.role == "tool":
                raise missing("tool_call_id")
            raise wrong(f'only a tool\'s messages may have it, not "{self.role}"', "tool_call_id")

    @property
    def thoughts(self) -> str | None:
        """None where there are none, and for other roles' messages."""
        said = self.reasoning_content or self.reasoning or self.thinking
        return said or None if self.role == "assistant" else None
