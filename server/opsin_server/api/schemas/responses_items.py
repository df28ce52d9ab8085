"""The items of a Responses request's `input`, as clients send them: messages, calls of functions and their results."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from opsin_server.api.schemas.compaction import check_packed
from opsin_server.chat.fields import Ignored, Strict, missing, only, wrong
from opsin_server.chat.messages import Detail, check_arguments, known

PartType = Literal["input_text", "output_text", "text", "reasoning_text", "input_image", "input_file"]
ItemType = Literal["message", "function_call", "function_call_output", "reasoning", "item_reference", "compaction"]
Role = Literal["system", "developer", "user", "assistant"]
PART_FIELDS: dict[str, tuple[str, ...]] = {
    "input_image": ("image_url", "file_id", "detail"),
    "input_file": ("file_data", "file_id", "detail"),
}
ITEM_FIELDS: dict[str, tuple[str, ...]] = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": ("content",),
    "item_reference": ("id",),
    "compaction": ("encrypted_content",),
}


class InputPart(Strict):
    """One part of a message, or of what a function gave back."""

    type: Annotated[PartType, known(PartType, "content parts")]
    text: str | None = None
    image_url: Annotated[str | None, Field(description='of "input_image": a data: URL, or one of http(s)')] = None
    file_id: Annotated[str | None, Field(description="of an image that was uploaded to /v1/files")] = None
    file_data: Annotated[str | None, Field(description='of "input_file": a data: URL of an image')] = None
    detail: Annotated[Detail, Field(description='of "input_image"')] = None

    # These cannot change an answer.
    filename: Ignored = None  # a file says itself what it is
    annotations: Ignored = None
    logprobs: Ignored = None
    parsed: Ignored = None  # the SDK's own, in what it has parsed
    prompt_cache_breakpoint: Ignored = None

    # This would change the answer, and passes only where it would not.
    file_url: Annotated[None, only(why='send an "input_image" with this "image_url"')] = None

    @model_validator(mode="after")
    def _holds_its_type(self) -> InputPart:
        allowed = PART_FIELDS.get(self.type, ("text",))
        given = [name for name in ("text", "image_url", "file_id", "file_data") if getattr(self, name) is not None]
        if other := next((name for name in given if name not in allowed), None):
            raise wrong(f'a part of type "{self.type}" must not have "{other}"', other)
        if not given:
            needed = " or ".join(f'"{name}"' for name in allowed if name != "detail")
            raise wrong(f'a part of type "{self.type}" needs {needed}', allowed[0])
        if len(given) > 1:
            raise wrong(f'a part of type "{self.type}" has one of "{given[0]}" and "{given[1]}"', given[1])
        if self.file_data is not None and self.file_data[:5].lower() != "data:":
            raise wrong("it must be a data: URL of an image", "file_data")
        if self.detail is not None and "detail" not in allowed:
            raise wrong(f'a part of type "{self.type}" must not have "detail"', "detail")
        return self

    def as_chat(self) -> dict[str, Any]:
        """The same part of a chat's message."""
        if self.text is not None:
            return {"type": "text", "text": self.text}
        url = self.image_url if self.file_data is None else self.file_data
        return {"type": "input_image", "image_url": url, "file_id": self.file_id, "detail": self.detail}


_KINDS = {str: "~string", list: "~parts", type(None): "~null"}
Content = Annotated[
    Annotated[str, Tag("~string")] | Annotated[list[InputPart], Tag("~parts")] | Annotated[None, Tag("~null")],
    Discriminator(
        lambda value: _KINDS.get(type(value)),
        custom_error_type="wrong",
        custom_error_message="{message}",
        custom_error_context={"message": "must be a string or a list of content parts"},
    ),
]


class InputItem(Strict):
    """One item, of one of six types. What an answer holds is accepted as it came."""

    type: Annotated[ItemType | None, known(ItemType, "items"), Field(description='left out: "message"')] = None
    role: Annotated[Role | None, known(Role, "roles"), Field(description="of a message")] = None
    content: Annotated[
        Content, Field(description="of a message; of reasoning, which some chat templates show again")
    ] = None
    id: Annotated[
        str | None, Field(max_length=256, description="of a reference: a stored item's; ignored in all others")
    ] = None
    call_id: Annotated[
        str | None, Field(min_length=1, max_length=256, description="of a function's call and of its result")
    ] = None
    name: Annotated[str | None, Field(min_length=1, max_length=256, description="of a function's call")] = None
    arguments: Annotated[str | None, Field(description="of a function's call: a JSON object")] = None
    output: Annotated[Content, Field(description="of a function's result")] = None
    encrypted_content: Annotated[
        str | None, Field(description="of a compaction: what /v1/responses/compact gave; ignored in all others")
    ] = None

    # These cannot change an answer.
    status: Ignored = None
    phase: Ignored = None
    summary: Ignored = None  # of reasoning: no template shows it
    parsed_arguments: Ignored = None  # the SDK's own, in what it has parsed

    # These would change the answer, and pass only where they would not.
    namespace: Annotated[None, only()] = None
    caller: Annotated[None, only({"type": "direct"})] = None
    async_: Annotated[None, Field(alias="async"), only(False)] = None

    @property
    def thoughts(self) -> str:
        """The text of reasoning."""
        parts = self.content or ()
        return parts if isinstance(parts, str) else "".join(part.text or "" for part in parts)

    @property
    def kind(self) -> ItemType:
        return self.type or "message"

    @model_validator(mode="after")
    def _holds_its_type(self) -> InputItem:
        allowed = ITEM_FIELDS[self.kind]
        for name in ("role", "content", "call_id", "name", "arguments", "output"):
            given = getattr(self, name) is not None
            if given and name not in allowed and (self.kind, name) != ("function_call_output", "name"):
                raise wrong(f'an item of type "{self.kind}" must not have "{name}"', name)
        for name in () if self.kind == "reasoning" else allowed:
            if getattr(self, name) is None:
                raise missing(name)
        if self.kind == "function_call":
            check_arguments(self.arguments or "")
        if self.kind == "compaction":
            check_packed(self.encrypted_content or "")
        if self.kind == "reasoning":
            return self
        if self.content == [] or self.output == []:
            raise wrong("must hold at least one part", "content" if self.content == [] else "output")
        return self


def said_by_user(text: str) -> list[InputItem]:
    return [InputItem.model_validate({"type": "message", "role": "user", "content": text})]


def _of_a_string(value: Any) -> Any:
    if value is not None and not isinstance(value, str | list):
        raise wrong("it must be a string or a list of items")
    return value if isinstance(value, list) else said_by_user(value or "")


Items = Annotated[
    list[InputItem],
    Field(min_length=1, fail_fast=True),
    BeforeValidator(_of_a_string, json_schema_input_type=str | list[InputItem] | None),
]
