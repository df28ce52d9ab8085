"""The messages of a chat request, and what the prompt code makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from opsin_plugins.spec import ImageBudget
from opsin_server.api.fields import WHOLE, Ignored, Strict, missing, only, unsupported, wrong
from opsin_server.prompt.messages import ImagePart, Message, Role, TextPart

if TYPE_CHECKING:
    from opsin_server.api.wire import ChatRequest

LOW_DETAIL_PIXELS = 512 * 512  # what OpenAI documents for detail "low"

_ROLES = ("system", "developer", "user", "assistant")
# What a part of each type must hold. The types with "input" and "output" are those of OpenAI's Responses API.
_HOLDS = {"text": "text", "input_text": "text", "output_text": "text"}
_HOLDS |= {"image_url": "image_url", "input_image": "image_url", "image": "image"}
_PARTS = tuple(_HOLDS)


def _known(kinds: tuple[str, ...], noun: str) -> BeforeValidator:
    words = ", ".join(f'"{kind}"' for kind in kinds)

    def check(value: Any) -> Any:
        if isinstance(value, str) and value not in kinds:
            raise unsupported(value, f"the {noun} accepted are {words}")
        return value

    return BeforeValidator(check)


def _object_of_url(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


Pixels = Annotated[int, Field(ge=1, lt=2**31), WHOLE]
Detail = Annotated[
    Literal["auto", "low", "high", "original"] | None, BeforeValidator(lambda value: None if value == "" else value)
]


class ImageURL(Strict):
    """max_pixels: at most so many after resizing; not of OpenAI's API."""

    url: str
    detail: Detail = None
    max_pixels: Pixels | None = None
    format: Ignored = None  # a file says itself what it is


class ProcessorOptions(Strict):
    """For all images of a request, under vLLM's name for it."""

    max_pixels: Pixels | None = None


class ContentPart(Strict):
    """One part of a message."""

    type: Annotated[
        Literal["text", "input_text", "output_text", "image_url", "input_image", "image"],
        _known(_PARTS, "content parts"),
    ]
    text: str | None = None
    image_url: Annotated[ImageURL | None, Field(description="or its URL alone"), BeforeValidator(_object_of_url)] = None
    image: str | None = None
    detail: Annotated[Detail, Field(description='of "input_image"')] = None

    # These cannot change an answer.
    id: Ignored = None
    index: Ignored = None
    uuid: Ignored = None
    annotations: Ignored = None
    logprobs: Ignored = None
    cache_control: Ignored = None
    prompt_cache_breakpoint: Ignored = None

    @model_validator(mode="after")
    def _holds_its_type(self) -> ContentPart:
        held = _HOLDS[self.type]
        for name in ("text", "image_url", "image"):
            if name == held and getattr(self, name) is None:
                raise wrong(f'a part of type "{self.type}" needs "{name}"', name)
            if name != held and getattr(self, name) is not None:
                raise wrong(f'a part of type "{self.type}" must not have "{name}"', name)
        if self.detail is not None and self.type != "input_image":
            raise wrong(f'a part of type "{self.type}" must not have "detail"', "detail")
        return self


_KINDS = {str: "~string", list: "~parts", type(None): "~null"}
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


class ChatMessage(Strict):
    """A message as clients send it. An answer, ours or another server's, is accepted as it came."""

    role: Annotated[Literal["system", "developer", "user", "assistant"], _known(_ROLES, "roles")]
    content: Annotated[Content, Field(description="an assistant's may be null, empty or left out")] = None

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
    reasoning: Ignored = None
    reasoning_content: Ignored = None
    reasoning_details: Ignored = None
    thinking: Ignored = None
    thinking_blocks: Ignored = None
    provider_specific_fields: Ignored = None

    # These would change the answer, and pass only where they would not.
    type: Annotated[None, only("message")] = None
    refusal: Annotated[None, only("")] = None
    audio: Annotated[None, only()] = None
    images: Annotated[None, only([])] = None
    function_call: Annotated[None, only()] = None
    tool_calls: Annotated[None, only([])] = None
    prefix: Annotated[None, only(False)] = None

    @model_validator(mode="after")
    def _holds_what_its_role_may(self) -> ChatMessage:
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
            if _HOLDS[part.type] != "text" and self.role != "user":
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


def _parts(
    content: str | list[ContentPart] | None, param: str, default: ImageBudget
) -> tuple[TextPart | ImagePart, ...]:
    if isinstance(content, str):
        return (TextPart(content),)
    if not content:  # an assistant's
        return (TextPart(""),)
    return tuple(_part(part, f"{param}[{index}]", default) for index, part in enumerate(content))


def _part(part: ContentPart, param: str, default: ImageBudget) -> TextPart | ImagePart:
    """An image's own number of pixels goes before the request's, and both before what `detail` stands for."""
    if part.text is not None:
        return TextPart(part.text)
    pixels, low = default.max_pixels, False
    if part.image_url is not None:
        source, param = part.image_url.url, f"{param}.image_url"
        pixels, low = part.image_url.max_pixels or pixels, "low" in (part.image_url.detail, part.detail)
    else:
        assert part.image is not None
        source, param = part.image, f"{param}.image"
    if pixels is None and low:
        return ImagePart(source, ImageBudget(LOW_DETAIL_PIXELS, default.max_tokens), param)
    return ImagePart(source, ImageBudget(pixels, default.max_tokens), param, demanded=pixels is not None)
