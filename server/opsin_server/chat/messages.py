"""A message as clients send it: its fields, and the parts of its content."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from opsin_server.chat.fields import WHOLE, Ignored, Strict, Unread, missing, only, unsupported, wrong

Role = Literal["system", "developer", "user", "assistant"]
# What a part of each type must hold. The types with "input" and "output" are those of OpenAI's Responses API.
PartType = Literal["text", "input_text", "output_text", "image_url", "input_image", "image"]
_HOLDS = {"input_text": "text", "output_text": "text", "input_image": "image_url"}  # the others: their own name


def _known(literal: Any, noun: str) -> BeforeValidator:
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
Detail = Annotated[
    Literal["auto", "low", "high", "original"] | None, BeforeValidator(lambda value: None if value == "" else value)
]


class ImageURL(Strict):
    """max_pixels: at most so many after resizing; not of OpenAI's API."""

    url: str
    detail: Detail = None
    max_pixels: Pixels | None = None
    format: Ignored = None  # a file says itself what it is


class ContentPart(Strict):
    """One part of a message."""

    type: Annotated[PartType, _known(PartType, "content parts")]
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

    @property
    def holds(self) -> str:
        """The field that a part of its type has: text, image_url or image."""
        return _HOLDS.get(self.type, self.type)

    @model_validator(mode="after")
    def _holds_its_type(self) -> ContentPart:
        held = self.holds
        for name in ("text", "image_url", "image"):
            if name == held and getattr(self, name) is None:
                raise wrong(f'a part of type "{self.type}" needs "{name}"', name)
            if name != held and getattr(self, name) is not None:
                raise wrong(f'a part of type "{self.type}" must not have "{name}"', name)
        if self.detail is not None and self.type != "input_image":
            raise wrong(f'a part of type "{self.type}" must not have "detail"', "detail")
        return self


_KINDS = {str: "~string", list: "~parts", type(None): "~null"}
TAGS = frozenset(_KINDS.values())  # of a union; in the location of an error they are no field's name
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
Thoughts = Annotated[str | None, BeforeValidator(lambda value: value if isinstance(value, str) else _unread(value))]


THOUGHTS = "an assistant's; some chat templates show it. Ignored where it is no string, or another role's"


class ChatMessage(Strict):
    """A message as clients send it. An answer, ours or another server's, is accepted as it came."""

    role: Annotated[Role, _known(Role, "roles")]
    content: Annotated[Content, Field(description="an assistant's may be null, empty or left out")] = None

    # What an assistant thought before it said this, by the names that servers give it. The first that is there counts.
    reasoning_content: Annotated[
        Thoughts,
        Field(description=THOUGHTS),
    ] = None
    reasoning: Annotated[Thoughts, Field(description="the same")] = None
    thinking: Annotated[Thoughts, Field(description="the same")] = None

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
            if part.holds != "text" and self.role != "user":
                where = f"content[{index}].type"
                raise wrong(f'"{part.type}" is accepted in user messages only, not from "{self.role}"', where)
        return self

    @property
    def thoughts(self) -> str | None:
        """None where there are none, and for other roles' messages."""
        said = self.reasoning_content or self.reasoning or self.thinking
        return said or None if self.role == "assistant" else None
