"""The body of POST /v1/chat/completions. Every field acts, passes because it changes nothing, or is refused by name."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from opsin_server.api.schemas.dialects import Dialects
from opsin_server.api.schemas.fields import WHOLE, Ignored, Strict, Unread, missing, only, shown, unsupported, wrong

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


class ProcessorOptions(Strict):
    """For all images of a request, under vLLM's name for it."""

    max_pixels: Pixels | None = None


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


MAX_STOPS = 16  # OpenAI takes 4
MAX_BIASES = 1024

TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,8}")
Bias = Annotated[float, Field(ge=-100, le=100)]
Stop = Annotated[str, Field(max_length=1024)]
Tokens = Annotated[int, Field(ge=1, lt=2**31), WHOLE]


def _by_token(value: Any) -> Any:
    for key in value if isinstance(value, dict) else ():
        if not TOKEN_ID.fullmatch(key):
            raise wrong(f"its keys must be token ids, not {shown(key)}")
    return value


def _listed(value: Any) -> Any:
    """One string as a list of one. An empty one would stop before the first token: many clients mean "none" by it."""
    strings = [value] if isinstance(value, str) else value
    return [string for string in strings if string != ""] if isinstance(strings, list) else strings


class StreamOptions(Strict):
    """Without a stream they have no effect."""

    include_usage: bool | None = None
    continuous_usage_stats: Annotated[bool | None, Field(description="with `include_usage`: in every chunk (vLLM)")] = (
        None
    )
    include_obfuscation: Annotated[None, only(False)] = None


class ChatRequest(Dialects):
    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]

    # These act.
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Annotated[int, Field(ge=-1, lt=2**31), WHOLE] | None, Field(description="0 and -1: all")] = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: Annotated[dict[str, Bias] | None, Field(max_length=MAX_BIASES), BeforeValidator(_by_token)] = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), WHOLE] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    stop: Annotated[
        list[Stop] | None,
        Field(max_length=MAX_STOPS, description="or one string; empty strings are left out"),
        BeforeValidator(_listed),
    ] = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    mm_processor_kwargs: ProcessorOptions | None = None
    continue_final_message: Annotated[
        bool | None, Field(description="the last message is the assistant's, and the answer is what follows it")
    ] = None
    add_generation_prompt: Annotated[
        bool | None, Field(description="true, which is the default, unless `continue_final_message` is true")
    ] = None

    # These cannot change an answer.
    user: Ignored = None
    metadata: Ignored = None
    safety_identifier: Ignored = None
    prediction: Ignored = None  # makes OpenAI's answers come faster, not differ
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    prompt_cache_options: Ignored = None
    parallel_tool_calls: Ignored = None  # there are no tools to call

    # These would change the answer, and pass only where they would not.
    n: Annotated[None, only(1)] = None
    tools: Annotated[None, only([])] = None
    tool_choice: Annotated[None, only("none", "auto")] = None
    functions: Annotated[None, only([])] = None
    function_call: Annotated[None, only("none", "auto")] = None
    response_format: Annotated[None, only({"type": "text"})] = None
    modalities: Annotated[None, only(["text"])] = None
    audio: Annotated[None, only()] = None
    reasoning_effort: Annotated[None, only("none")] = None
    verbosity: Annotated[None, only("medium")] = None
    web_search_options: Annotated[None, only()] = None
    moderation: Annotated[None, only()] = None
    service_tier: Annotated[None, only("auto", "default")] = None
    store: Annotated[None, only(False)] = None

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatRequest:
        self._check_last_turn()
        if self.top_logprobs and not self.logprobs:
            raise wrong("needs 'logprobs' to be true", "top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            both = f"'max_tokens' is {self.max_tokens} and 'max_completion_tokens' is {self.max_completion_tokens}"
            raise wrong(f"{both}: give one", "max_tokens")
        return self

    def _check_last_turn(self) -> None:
        """An answer follows a user's message, or continues an assistant's."""
        by_assistant = self.messages[-1].role == "assistant"
        if self.continue_final_message:
            if self.add_generation_prompt:
                raise wrong("must be false where 'continue_final_message' is true", "add_generation_prompt")
            if not by_assistant:
                raise wrong("is true, but the last message is not the assistant's", "continue_final_message")
        elif self.add_generation_prompt is False:
            need = "'add_generation_prompt' may be false where 'continue_final_message' is true, and only there"
            raise unsupported(False, need, "add_generation_prompt")
        elif by_assistant:
            accepted = "the last message must not be from the assistant, unless 'continue_final_message' is true"
            raise unsupported("assistant", accepted, f"messages[{len(self.messages) - 1}].role")

    @property
    def output_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True

    @property
    def wants_usage_in_every_chunk(self) -> bool:
        options = self.stream_options
        return options is not None and bool(options.include_usage and options.continuous_usage_stats)


class DeploymentRequest(ChatRequest):
    """Azure's way to ask: the address names the model, and the body may name it or not."""

    model: Annotated[str, BeforeValidator(lambda value: "" if value is None else value)] = ""
