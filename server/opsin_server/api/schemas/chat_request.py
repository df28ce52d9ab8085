"""The body of POST /v1/chat/completions. Every field acts, passes because it changes nothing, or is refused by name."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from opsin_server.api.schemas.dialects import Dialects
from opsin_server.api.schemas.fine_tuning import checked_pairs
from opsin_server.api.schemas.structured_outputs import GuidedFields, ResponseFormat, StructuredOutputs
from opsin_server.api.schemas.tools import MAX_TOOLS, Tool, ToolChoice
from opsin_server.chat.fields import WHOLE, Ignored, Strict, Unread, only, shown, unsupported, wrong
from opsin_server.chat.messages import ChatMessage, Pixels


class ProcessorOptions(Strict):
    """For all images of a request, under vLLM's name for it."""

    max_pixels: Pixels | None = None


MAX_STOPS = 16  # OpenAI takes 4
MAX_BIASES = 1024
MAX_STOP_TOKENS = 256
MAX_CHOICES = 16

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


# What published templates ask for. No template is given any other variable, nor one of its own by these names.
TEMPLATE_VARIABLES = (
    "add_vision_id", "date_string", "enable_thinking", "preserve_thinking", "reasoning_effort", "thinking",
    "tools_in_user_message",
)  # fmt: skip
TEMPLATE_VARIABLES_WORDS = f"variables of the chat template: {', '.join(f'`{name}`' for name in TEMPLATE_VARIABLES)}"
MAX_VARIABLE = 256  # characters


def _template_variables(value: Any) -> Any:
    for name, given in value.items() if isinstance(value, dict) else ():
        if name not in TEMPLATE_VARIABLES:
            raise unsupported(name, f"the variables accepted are {', '.join(TEMPLATE_VARIABLES)}")
        if not isinstance(given, bool | int | str) or len(str(given)) > MAX_VARIABLE:
            raise wrong(f"'{name}' must be true or false, a number or a short string")
    return value


_unread = Unread()


def _pairs(value: Any) -> Any:
    """What is no object cannot be kept, and is ignored as all of it is where nothing is kept."""
    _unread(value)
    return value if isinstance(value, dict) else None


class StreamOptions(Strict):
    """Without a stream they have no effect."""

    include_usage: bool | None = None
    continuous_usage_stats: Annotated[bool | None, Field(description="with `include_usage`: in every chunk (vLLM)")] = (
        None
    )
    include_obfuscation: Annotated[None, only(False)] = None


class ChatRequest(Dialects, GuidedFields):
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
    n: Annotated[
        Annotated[int, Field(ge=1, le=MAX_CHOICES), WHOLE] | None,
        Field(description="answers, to a prompt computed once"),
    ] = None
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
    min_tokens: Annotated[
        Annotated[int, Field(ge=0, lt=2**31), WHOLE] | None, Field(description="before which no end is drawn")
    ] = None
    stop_token_ids: Annotated[
        list[Annotated[int, Field(ge=0, lt=2**31), WHOLE]] | None,
        Field(max_length=MAX_STOP_TOKENS, description="each ends the answer, and is no part of it"),
    ] = None
    ignore_eos: bool | None = None
    priority: Annotated[
        Annotated[int, Field(ge=-(2**31), lt=2**31), WHOLE] | None, Field(description="the smaller, the sooner (vLLM)")
    ] = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    tools: Annotated[list[Tool] | None, Field(max_length=MAX_TOOLS)] = None
    tool_choice: Annotated[ToolChoice, Field(description="or a function by name")] = None
    parallel_tool_calls: Annotated[bool | None, Field(description="false: at most one call")] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    mm_processor_kwargs: ProcessorOptions | None = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None, BeforeValidator(_template_variables), Field(description=TEMPLATE_VARIABLES_WORDS)
    ] = None
    continue_final_message: Annotated[
        bool | None, Field(description="the last message is the assistant's, and the answer is what follows it")
    ] = None
    add_generation_prompt: Annotated[
        bool | None, Field(description="true, which is the default, unless `continue_final_message` is true")
    ] = None

    store: Annotated[bool | None, Field(description="of a server with `--store`: the answer is kept")] = None
    metadata: Annotated[
        dict[str, Any] | None,
        BeforeValidator(_pairs),
        Field(description="of an answer that is kept, which is found by it; ignored otherwise"),
    ] = None

    # These cannot change an answer.
    user: Ignored = None
    safety_identifier: Ignored = None
    prediction: Ignored = None  # makes OpenAI's answers come faster, not differ
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    prompt_cache_options: Ignored = None

    # These would change the answer, and pass only where they would not.
    functions: Annotated[None, only([])] = None
    function_call: Annotated[None, only("none", "auto")] = None
    modalities: Annotated[None, only(["text"])] = None
    audio: Annotated[None, only()] = None
    reasoning_effort: Annotated[None, only("none")] = None
    verbosity: Annotated[None, only("medium")] = None
    web_search_options: Annotated[None, only()] = None
    moderation: Annotated[None, only()] = None
    service_tier: Annotated[None, only("auto", "default")] = None

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatRequest:
        self._check_last_turn()
        self._check_tools()
        if self.store:
            self._check_pairs()
        if self.top_logprobs and not self.logprobs:
            raise wrong("needs 'logprobs' to be true", "top_logprobs")
        if self.output_limit is not None and (self.min_tokens or 0) > self.output_limit:
            raise wrong(f"{self.min_tokens} are more than the answer may have, {self.output_limit}", "min_tokens")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            both = f"'max_tokens' is {self.max_tokens} and 'max_completion_tokens' is {self.max_completion_tokens}"
            raise wrong(f"{both}: give one", "max_tokens")
        return self

    def _check_tools(self) -> None:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise wrong("two tools have one name", "tools")
        if not names and self.tool_choice not in (None, "none", "auto"):
            raise wrong("it is allowed where there are tools", "tool_choice")
        called = set[str]()
        for index, message in enumerate(self.messages):
            called |= {call.id for call in message.tool_calls or ()}
            if message.tool_call_id is not None and message.tool_call_id not in called:
                raise wrong("no message before it calls a tool by this id", f"messages[{index}].tool_call_id")

    def _check_pairs(self) -> None:
        """Metadata as it is kept: strings."""
        pairs = self.metadata or {}
        if not all(isinstance(value, str) for value in pairs.values()):
            raise wrong("its values must be strings where the answer is stored", "metadata")
        try:
            checked_pairs(pairs)
        except PydanticCustomError as error:
            raise wrong(error.message(), "metadata") from None

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
