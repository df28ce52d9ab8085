"""Messages in the words of the prompt code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from opsin_plugins.spec import ImageBudget
from opsin_server.chat.fields import UNSUPPORTED, Strict
from opsin_server.chat.messages import ChatMessage, ContentPart, VideoFields
from opsin_server.errors import BadRequest
from opsin_server.media.file_id import FileId
from opsin_server.text.conversation import ImagePart, Message, Part, Role, TextPart, ToolCall, VideoPart, VideoWish

CHOOSING = ("num_frames", "min_frames", "max_frames")  # frames of a file
LOW_DETAIL_PIXELS = 512 * 512  # what OpenAI documents for detail "low"


NOT_SAID = VideoWish()


def to_messages(
    messages: Sequence[ChatMessage], default: ImageBudget, path: str = "messages", of_videos: VideoWish = NOT_SAID
) -> list[Message]:
    """ "developer" is OpenAI's newer name for "system". default, of_videos: for images and videos that do not say.
    path: of the messages in what was sent, for errors."""
    return [
        Message(
            _role(message),
            _parts(message.content, f"{path}[{index}].content", default, of_videos),
            message.thoughts,
            is_string=not isinstance(message.content, list),
            tool_calls=tuple(
                ToolCall(call.id, call.function.name, call.function.arguments or "{}")
                for call in message.tool_calls or ()
            ),
            tool_call_id=message.tool_call_id,
        )
        for index, message in enumerate(messages)
    ]


def _role(message: ChatMessage) -> Role:
    return "system" if message.role == "developer" else message.role


def _parts(
    content: str | list[ContentPart] | None, param: str, default: ImageBudget, of_videos: VideoWish
) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (TextPart(content),)
    if not content:  # an assistant's
        return (TextPart(""),)
    return tuple(to_part(part, f"{param}[{index}]", default, of_videos) for index, part in enumerate(content))


def to_part(part: ContentPart, param: str, default: ImageBudget, of_videos: VideoWish = NOT_SAID) -> Part:
    """param: where it stands in what was sent. An image's own number of pixels goes before the request's, and both
    before what `detail` stands for."""
    if part.text is not None:
        return TextPart(part.text)
    if part.video_url is not None or part.video is not None:
        return _video(part, param, of_videos)
    pixels, low = default.max_pixels, part.detail == "low"
    if part.image_url is not None:
        pixels, low = part.image_url.max_pixels or pixels, low or part.image_url.detail == "low"
    source, name = _source(part)
    param = f"{param}.{name}"
    if pixels is None and low:
        return ImagePart(source, ImageBudget(LOW_DETAIL_PIXELS, default.max_tokens), param)
    return ImagePart(source, ImageBudget(pixels, default.max_tokens), param, demanded=pixels is not None)


def _video(part: ContentPart, param: str, default: VideoWish) -> VideoPart:
    """Raises BadRequest."""
    wish = asked_of_videos(part, default, param)
    if part.video is not None and not isinstance(part.video, str):
        _check_pictures(wish)
        return VideoPart(tuple(part.video), wish, f"{param}.video")
    if part.video is not None:
        return VideoPart(part.video, wish, f"{param}.video")
    assert part.video_url is not None
    url, file_id = part.video_url.url, part.video_url.file_id
    if url is not None:
        return VideoPart(url, wish, f"{param}.video_url")
    assert file_id is not None
    return VideoPart(FileId(file_id), wish, f"{param}.video_url.file_id")


def _check_pictures(wish: VideoWish) -> None:
    """Of a video that is sent as pictures."""
    for name, where in wish.said:
        if name in CHOOSING and getattr(wish, name) is not None:
            message = f"Unsupported value for '{where}': of a video that is sent as pictures, all are taken"
            raise BadRequest(message, param=where, code=UNSUPPORTED)


def asked_of_videos(said: Strict, default: VideoWish, path: str) -> VideoWish:
    """What is said goes before the default; either way to choose frames replaces the other. path: of what says it."""
    given = {name: value for name in VideoFields.model_fields if (value := getattr(said, name, None)) is not None}
    if "fps" in given or "num_frames" in given:
        default = replace(default, fps=None, num_frames=None)
    places = dict(default.said) | {name: f"{path}.{name}" for name in given}
    return replace(default, **given, said=tuple(places.items()))


def _source(part: ContentPart) -> tuple[str, str]:
    """Where its picture comes from, and in which field that is said."""
    if part.image_url is not None:
        url, file_id = part.image_url.url, part.image_url.file_id
        return (FileId(file_id), "image_url.file_id") if url is None else (url, "image_url")
    if part.file is not None:
        data, file_id = part.file.file_data, part.file.file_id
        return (FileId(file_id), "file.file_id") if data is None else (data, "file.file_data")
    if part.file_id is not None:
        return FileId(part.file_id), "file_id"
    assert part.image is not None
    return part.image, "image"
