"""The messages of a chat request, and what the prompt code makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from opsin_plugins.spec import ImageBudget
from opsin_server.api.fields import Strict, only, unsupported, wrong
from opsin_server.prompt.messages import ImagePart, Message, Role, TextPart

if TYPE_CHECKING:
    from opsin_server.api.wire import ChatRequest

LOW_DETAIL_PIXELS = 512 * 512  # what OpenAI documents for detail "low"

_ROLES = ("system", "developer", "user", "assistant")
_PARTS = ("text", "image_url", "image")


def _known(kinds: tuple[str, ...], noun: str) -> BeforeValidator:
    words = ", ".join(f'"{kind}"' for kind in kinds)

    def check(value: Any) -> Any:
        if isinstance(value, str) and value not in kinds:
            raise unsupported(value, f"the {noun} accepted are {words}")
        return value

    return BeforeValidator(check)


def _object_of_url(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


Pixels = Annotated[int, Field(ge=1, lt=2**31)]


class ImageURL(Strict):
    """max_pixels: at most so many after resizing; not of OpenAI's API."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None
    max_pixels: Pixels | None = None


class ProcessorOptions(Strict):
    """For all images of a request, under vLLM's name for it."""

    max_pixels: Pixels | None = None


class ContentPart(Strict):
    """One part of a message. `prompt_cache_breakpoint` is a hint to a cache: it has no effect on the answer."""

    type: Annotated[Literal["text", "image_url", "image"], _known(_PARTS, "content parts")]
    text: str | None = None
    image_url: Annotated[ImageURL | None, BeforeValidator(_object_of_url)] = None
    image: str | None = None
    prompt_cache_breakpoint: dict[str, str] | None = None

    @model_validator(mode="after")
    def _holds_its_type(self) -> ContentPart:
        for name in _PARTS:
            if name == self.type and getattr(self, name) is None:
                raise wrong(f'a part of type "{self.type}" needs "{name}"', name)
            if name != self.type and getattr(self, name) is not None:
                raise wrong(f'a part of type "{self.type}" must not have "{name}"', name)
        return self


def _kind(value: Any) -> str | None:
    return "~string" if isinstance(value, str) else "~parts" if isinstance(value, list) else None


Content = Annotated[
    Annotated[str, Tag("~string")] | Annotated[list[ContentPart], Tag("~parts")],
    Discriminator(
        _kind,
        custom_error_type="wrong",
        custom_error_message="{message}",
        custom_error_context={"message": "must be a string or a list of content parts"},
    ),
]


class ChatMessage(Strict):
    """A message as clients send it. An answer of ours, sent back as it came, is accepted with its empty fields."""

    role: Annotated[Literal["system", "developer", "user", "assistant"], _known(_ROLES, "roles")]
    content: Content
    name: Annotated[None, only(None)] = None
    refusal: Annotated[None, only(None)] = None
    audio: Annotated[None, only(None)] = None
    function_call: Annotated[None, only(None)] = None
    tool_calls: Annotated[list[Any] | None, only(None, [])] = None
    annotations: Annotated[list[Any] | None, only(None, [])] = None

    @model_validator(mode="after")
    def _images_only_from_users(self) -> ChatMessage:
        if isinstance(self.content, list):
            if not self.content:
                raise wrong("must hold at least one part", "content")
            for index, part in enumerate(self.content):
                if part.type != "text" and self.role != "user":
                    where = f"content[{index}].type"
                    raise wrong(f'"{part.type}" is accepted in user messages only, not from "{self.role}"', where)
        return self


def to_prompt(request: ChatRequest, max_image_tokens: int | None) -> list[Message]:
    """The same conversation in the prompt code's words; "developer" is OpenAI's newer name for "system"."""
    options = request.mm_processor_kwargs
    default = ImageBudget(None if options is None else options.max_pixels, max_image_tokens)
    return [
        Message(_role(message), _parts(message.content, f"messages[{index}].content", default))
        for index, message in enumerate(request.messages)
    ]


def _role(message: ChatMessage) -> Role:
    return "system" if message.role == "developer" else message.role


def _parts(content: str | list[ContentPart], param: str, default: ImageBudget) -> tuple[TextPart | ImagePart, ...]:
    if isinstance(content, str):
        return (TextPart(content),)
    return tuple(_part(part, f"{param}[{index}]", default) for index, part in enumerate(content))


def _part(part: ContentPart, param: str, default: ImageBudget) -> TextPart | ImagePart:
    """An image's own number of pixels goes before the request's, and both before what `detail` stands for."""
    if part.text is not None:
        return TextPart(part.text)
    pixels, low = default.max_pixels, False
    if part.image_url is not None:
        source, param = part.image_url.url, f"{param}.image_url"
        pixels, low = part.image_url.max_pixels or pixels, part.image_url.detail == "low"
    else:
        assert part.image is not None
        source, param = part.image, f"{param}.image"
    if pixels is None and low:
        return ImagePart(source, ImageBudget(LOW_DETAIL_PIXELS, default.max_tokens), param)
    return ImagePart(source, ImageBudget(pixels, default.max_tokens), param, demanded=pixels is not None)
