"""What a request says of how its answer is drawn, where it ends and how it comes: the same for every route."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from opsin_server.api.schemas.structured_outputs import GuidedFields, ResponseFormat, StructuredOutputs
from opsin_server.chat.fields import WHOLE, Strict, only, shown, unsupported, wrong

MAX_STOPS = 16  # OpenAI takes 4
MAX_BIASES = 1024
MAX_STOP_TOKENS = 256
MAX_CHOICES = 16

TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,8}")
Bias = Annotated[float, Field(ge=-100, le=100)]
Stop = Annotated[str, Field(max_length=1024)]
Stops = Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None  # as they are sent
Tokens = Annotated[int, Field(ge=1, lt=2**31), WHOLE]
Priority = Annotated[
    Annotated[int, Field(ge=-(2**31), lt=2**31), WHOLE] | None, Field(description="the smaller, the sooner (vLLM)")
]


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


class SamplingFields(GuidedFields):
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Annotated[int, Field(ge=-1, lt=2**31), WHOLE] | None, Field(description="0 and -1: all")] = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: Annotated[dict[str, Bias] | None, Field(max_length=MAX_BIASES), BeforeValidator(_by_token)] = None
    n: Annotated[
        Annotated[int, Field(ge=1, le=MAX_CHOICES), WHOLE] | None,
        Field(description="answers, to a prompt computed once"),
    ] = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), WHOLE] | None = None
    stop: Annotated[
        list[Stop] | None,
        Field(max_length=MAX_STOPS, description="or one string; empty strings are left out"),
        BeforeValidator(_listed, json_schema_input_type=Stops),
    ] = None
    min_tokens: Annotated[
        Annotated[int, Field(ge=0, lt=2**31), WHOLE] | None, Field(description="before which no end is drawn")
    ] = None
    stop_token_ids: Annotated[
        list[Annotated[int, Field(ge=0, lt=2**31), WHOLE]] | None,
        Field(max_length=MAX_STOP_TOKENS, description="each ends the answer, and is no part of it"),
    ] = None
    ignore_eos: bool | None = None
    priority: Priority = None
    prompt_logprobs: Annotated[
        Annotated[int, Field(ge=0, le=20), WHOLE] | None,
        Field(description="of the prompt's own tokens, and of so many others (vLLM); not in a stream"),
    ] = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _stream_has_no_prompt(self) -> SamplingFields:
        if self.stream and self.prompt_logprobs is not None:
            raise unsupported(True, "'prompt_logprobs' goes without 'stream'", "stream")
        return self

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True

    @property
    def wants_usage_in_every_chunk(self) -> bool:
        options = self.stream_options
        return options is not None and bool(options.include_usage and options.continuous_usage_stats)
