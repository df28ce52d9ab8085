"""What a request may hold its answer to: OpenAI's `response_format`, and vLLM's names for it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from opsin_server.chat.fields import Ignored, Strict, missing, only, shown, unsupported, wrong

FormatType = Literal["text", "json_object", "json_schema"]
MAX_CHOICES = 10_000


def _known_type(value: Any) -> Any:
    if isinstance(value, str) and value not in get_args(FormatType):
        raise unsupported(value, 'the formats accepted are "text", "json_object", "json_schema"')
    return value


def _read(value: Any) -> Any:
    """vLLM takes a schema's text as well."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise wrong("it must be a JSON schema") from None
    if value is not None and not isinstance(value, dict):
        raise wrong(f"it must be a JSON schema, an object, not {shown(value)}")
    return value


Schema = Annotated[dict[str, Any] | None, BeforeValidator(_read, json_schema_input_type=dict[str, Any] | str | None)]
Choices = Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]


class JsonSchemaFormat(Strict):
    """Whether `strict` is true or not, the answer is held to the schema."""

    schema_: Annotated[Schema, Field(alias="schema", description="of the answer; without one: any JSON")] = None
    strict: bool | None = None

    # These cannot change an answer.
    name: Ignored = None
    description: Ignored = None


class ResponseFormat(Strict):
    type: Annotated[FormatType, BeforeValidator(_known_type)]
    json_schema: Annotated[JsonSchemaFormat | None, Field(description='with the type "json_schema"')] = None

    @model_validator(mode="after")
    def _holds_its_type(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise missing("json_schema")
        if self.type != "json_schema" and self.json_schema is not None:
            raise wrong(f'a format of type "{self.type}" must not have "json_schema"', "json_schema")
        return self


class StructuredOutputs(Strict):
    """vLLM's own: one of the first five."""

    json_: Annotated[Schema, Field(alias="json", description="a JSON schema, or its text")] = None
    json_object: Annotated[bool | None, Field(description="any JSON object")] = None
    regex: Annotated[str | None, Field(description="the whole answer matches")] = None
    choice: Annotated[Choices | None, Field(description="the answer is one of these")] = None
    grammar: Annotated[str | None, Field(description="in Lark's form, or llama.cpp's GBNF")] = None
    disable_any_whitespace: Annotated[bool | None, Field(description="between the parts of JSON")] = None
    whitespace_pattern: Annotated[str | None, Field(description="what may stand between the parts of JSON")] = None

    # These would change the answer, and pass only where they would not.
    structural_tag: Annotated[None, only()] = None
    disable_additional_properties: Annotated[None, only(False)] = None

    # These cannot change an answer.
    disable_fallback: Ignored = None
    backend: Ignored = None


class GuidedFields(Strict):
    """vLLM's older names, in the request itself."""

    guided_json: Annotated[Schema, Field(description="as `json` of `structured_outputs`")] = None
    guided_regex: Annotated[str | None, Field(description="as its `regex`")] = None
    guided_choice: Annotated[Choices | None, Field(description="as its `choice`")] = None
    guided_grammar: Annotated[str | None, Field(description="as its `grammar`")] = None
    guided_whitespace_pattern: Annotated[str | None, Field(description="as its `whitespace_pattern`")] = None
    guided_decoding_backend: Ignored = None
