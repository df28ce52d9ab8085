"""The body of POST /v1/responses. Every field acts, passes because it changes nothing, or is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from opsin_server.api.schemas.fine_tuning import checked_pairs
from opsin_server.api.schemas.responses_items import Items, said_by_user
from opsin_server.api.schemas.sampling_fields import Tokens
from opsin_server.api.schemas.structured_outputs import FormatType, Schema
from opsin_server.api.schemas.tools import MAX_TOOLS, MODES, Name
from opsin_server.chat.fields import WHOLE, Ignored, Strict, missing, only, unsupported, wrong
from opsin_server.chat.messages import known

LOGPROBS = "message.output_text.logprobs"
# The others are of items that no answer here has, or of what comes back anyway: they change nothing.
Includable = Literal[
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


def _function_only(value: Any) -> Any:
    if value != "function":
        raise unsupported(value, 'tools of type "function" are accepted, which the client runs')
    return value


def _read_choice(value: Any) -> Any:
    if isinstance(value, str) and value not in MODES:
        raise unsupported(value, 'it must be "none", "auto", "required" or a function by name')
    if isinstance(value, dict) and value.get("type") == "allowed_tools":
        raise unsupported(value, "send the allowed tools alone in 'tools'")
    return value


class ResponseTool(Strict):
    type: Annotated[Literal["function"], BeforeValidator(_function_only)]
    name: Name
    description: str | None = None
    parameters: Annotated[dict[str, Any] | None, Field(description="a JSON schema of an object")] = None
    strict: Annotated[bool | None, Field(description="calls are held to the schema also where they are free")] = None

    # These cannot change an answer.
    output_schema: Ignored = None
    cache_control: Ignored = None

    # These would change the answer, and pass only where they would not.
    defer_loading: Annotated[None, only(False)] = None
    allowed_callers: Annotated[None, only(["direct"])] = None
    async_: Annotated[None, Field(alias="async"), only(False)] = None

    def as_chat(self) -> dict[str, Any]:
        own = self.model_dump(include={"name", "description", "parameters", "strict"}, exclude_none=True)
        return {"type": "function", "function": own}


class ResponseToolChoice(Strict):
    type: Annotated[Literal["function"], BeforeValidator(_function_only)]
    name: Name


_KINDS = {str: "~string", dict: "~object", type(None): "~null"}
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("~string")]
    | Annotated[ResponseToolChoice, Tag("~object")]
    | Annotated[None, Tag("~null")],
    Discriminator(
        lambda value: _KINDS.get(type(value)),
        custom_error_type="wrong",
        custom_error_message="{message}",
        custom_error_context={"message": "must be a string or an object"},
    ),
    BeforeValidator(_read_choice),
]


class TextFormat(Strict):
    type: Annotated[FormatType, known(FormatType, "formats")]
    name: Annotated[str | None, Field(max_length=256, description='with the type "json_schema", and needed there')] = (
        None
    )
    schema_: Annotated[Schema, Field(alias="schema", description='with the type "json_schema": of the answer')] = None
    strict: Annotated[bool | None, Field(description="the answer is held to the schema whether or not")] = None
    description: Annotated[str | None, Field(description="comes back with the answer")] = None

    @model_validator(mode="after")
    def _holds_its_type(self) -> TextFormat:
        for name, value in (("name", self.name), ("schema", self.schema_)):
            if self.type == "json_schema" and value is None:
                raise missing(name)
            if self.type != "json_schema" and value is not None:
                raise wrong(f'a format of type "{self.type}" must not have "{name}"', name)
        return self


class TextOptions(Strict):
    format: Annotated[TextFormat | None, Field(description="what the answer is held to")] = None
    verbosity: Annotated[None, only("medium")] = None


class ResponseStreamOptions(Strict):
    include_obfuscation: Annotated[
        bool | None, Field(description="true: deltas have padding, which hides their lengths; left out, none")
    ] = None


# Pictures are given to the model as they are: what is left to the server here is "disabled".
COMPRESSION = ({"context_compression": "auto"}, {"context_compression": "disabled"})


class Conversation(Strict):
    """What was said."""

    model: Annotated[str | None, Field(min_length=1, description="left out, the served one")] = None
    input: Annotated[
        Items, Field(description="or a string, what the user says; left out, an empty message of the user's")
    ] = said_by_user("")

    # These act.
    instructions: Annotated[
        str | None, Field(description="what the system says, for this answer alone: it is not kept with it")
    ] = None
    previous_response_id: Annotated[
        str | None, Field(max_length=256, description="of a kept response, whose conversation goes on")
    ] = None


class CompactRequest(Conversation):
    """Of which a summary is made."""

    # These cannot change an answer.
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    prompt_cache_options: Ignored = None

    # These would change the answer, and pass only where they would not.
    image: Annotated[None, only(*COMPRESSION)] = None
    service_tier: Annotated[None, only("auto", "default")] = None


class ResponsesInput(Conversation):
    """What a prompt is made of."""

    # These act.
    tools: Annotated[list[ResponseTool] | None, Field(max_length=MAX_TOOLS)] = None
    tool_choice: Annotated[ToolChoice, Field(description="or a function by name")] = None
    parallel_tool_calls: Annotated[bool | None, Field(description="false: at most one call")] = None
    text: TextOptions | None = None

    # These would change the answer, and pass only where they would not.
    conversation: Annotated[None, only()] = None
    reasoning: Annotated[None, only({}, {"effort": "none"}, {"effort": None}, {"effort": None, "summary": None})] = None
    truncation: Annotated[None, only("disabled")] = None

    @model_validator(mode="after")
    def _asks_for_an_answer(self) -> Self:
        last = self.input[-1]
        if last.kind in ("function_call", "reasoning") or last.role == "assistant":
            where = f"input[{len(self.input) - 1}]"
            raise unsupported(last.role or last.kind, "the last item must not be the assistant's", where)
        return self


class InputTokensRequest(ResponsesInput):
    """Of a prompt whose tokens are counted."""

    personality: Annotated[None, only()] = None


class ResponsesRequest(ResponsesInput):
    # These act.
    max_output_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    include: Annotated[
        list[Annotated[Includable, known(Includable, "values")]] | None,
        Field(max_length=64, description=f"`{LOGPROBS}` acts; the others are of what no answer here has"),
    ] = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    metadata: Annotated[
        dict[str, str] | None, AfterValidator(checked_pairs), Field(description="comes back with the answer")
    ] = None
    store: Annotated[
        bool | None, Field(description="of a server with `--store`: whether the answer is kept; left out, it is")
    ] = None

    # These cannot change an answer.
    user: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    prompt_cache_options: Ignored = None
    max_tool_calls: Ignored = None  # of built-in tools, of which there are none

    # These would change the answer, and pass only where they would not.
    background: Annotated[None, only(False)] = None
    background_options: Annotated[None, only()] = None
    prompt: Annotated[None, only()] = None
    service_tier: Annotated[None, only("auto", "default")] = None
    context_management: Annotated[None, only([])] = None
    moderation: Annotated[None, only()] = None
    image: Annotated[None, only(*COMPRESSION)] = None
    access_programs: Annotated[None, only()] = None

    @property
    def wants_obfuscation(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_obfuscation)

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.top_logprobs and not self.wants_logprobs:
            raise wrong(f"needs '{LOGPROBS}' in 'include'", "top_logprobs")
        return self
