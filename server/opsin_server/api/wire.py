"""The body of POST /v1/chat/completions. Every field acts, passes because it changes nothing, or is refused by name."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from opsin_server.api.conversation import ChatMessage, ProcessorOptions
from opsin_server.api.fields import Strict, only, shown, unsupported, wrong

MAX_STOPS = 16  # OpenAI takes 4
MAX_BIASES = 1024

TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,8}")
Bias = Annotated[float, Field(ge=-100, le=100)]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]


def _by_token(value: Any) -> Any:
    for key in value if isinstance(value, dict) else ():
        if not TOKEN_ID.fullmatch(key):
            raise wrong(f"its keys must be token ids, not {shown(key)}")
    return value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, only(None, False)] = None


class ChatRequest(Strict):
    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]

    # These act.
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: Annotated[dict[str, Bias] | None, Field(max_length=MAX_BIASES), BeforeValidator(_by_token)] = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stop: Annotated[list[Stop] | None, Field(max_length=MAX_STOPS), BeforeValidator(_listed)] = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    mm_processor_kwargs: ProcessorOptions | None = None

    # These have no effect on an answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None  # there are no tools to call

    # These would change the answer, and pass only where they would not.
    n: Annotated[Any, only(None, 1)] = None
    tools: Annotated[Any, only(None, [])] = None
    tool_choice: Annotated[Any, only(None, "none", "auto")] = None
    functions: Annotated[Any, only(None, [])] = None
    function_call: Annotated[Any, only(None, "none", "auto")] = None
    response_format: Annotated[Any, only(None, {"type": "text"})] = None
    modalities: Annotated[Any, only(None, ["text"])] = None
    audio: Annotated[Any, only(None)] = None
    prediction: Annotated[Any, only(None)] = None
    reasoning_effort: Annotated[Any, only(None, "none")] = None
    verbosity: Annotated[Any, only(None, "medium")] = None
    web_search_options: Annotated[Any, only(None)] = None
    moderation: Annotated[Any, only(None)] = None
    service_tier: Annotated[Any, only(None, "auto", "default")] = None
    store: Annotated[Any, only(None, False)] = None

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatRequest:
        if self.messages[-1].role == "assistant":
            last = f"messages[{len(self.messages) - 1}].role"
            raise unsupported("assistant", "the last message must not be from the assistant, whose turn it is", last)
        if self.top_logprobs and not self.logprobs:
            raise wrong("needs 'logprobs' to be true", "top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise wrong("needs 'stream' to be true", "stream_options")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            both = f"'max_tokens' is {self.max_tokens} and 'max_completion_tokens' is {self.max_completion_tokens}"
            raise wrong(f"{both}: give one", "max_tokens")
        return self

    @property
    def output_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True
