"""The body of POST /v1/chat/completions. Every field acts, passes because it changes nothing, or is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from opsin_server.api.schemas.deployments import NamedByAddress
from opsin_server.api.schemas.dialects import Dialects
from opsin_server.api.schemas.fine_tuning import checked_pairs
from opsin_server.api.schemas.sampling_fields import SamplingFields, Tokens
from opsin_server.api.schemas.tools import MAX_TOOLS, Tool, ToolChoice
from opsin_server.chat.fields import WHOLE, Ignored, Strict, Unread, only, unsupported, wrong
from opsin_server.chat.messages import ChatMessage, Frames, FramesPerSecond, Pixels, VideoFields
from opsin_server.chat.open_calls import check_results


def _unless_minus_one(value: Any) -> Any:
    """-1 says nothing."""
    return None if value == -1 else value


class ProcessorOptions(VideoFields):
    """For all images and videos of a request, under vLLM's name for it."""

    max_pixels: Annotated[
        Pixels | None, Field(description="at most so many in an image, and in a frame of a video, after resizing")
    ] = None

    do_sample_frames: Annotated[None, only(True)] = None


class VideoInputOptions(Strict):
    fps: Annotated[
        FramesPerSecond | None,
        BeforeValidator(_unless_minus_one, json_schema_input_type=FramesPerSecond | Literal[-1] | None),
        Field(description="or -1, as if it were left out"),
    ] = None
    num_frames: Annotated[
        Frames | None,
        BeforeValidator(_unless_minus_one, json_schema_input_type=Frames | Literal[-1] | None),
        Field(description="or -1, as if it were left out"),
    ] = None


class InputOptions(Strict):
    """The same again, under vLLM's name for what reads files."""

    video: VideoInputOptions | None = None
    image: Annotated[None, only({})] = None


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


def _pairs(value: Any, info: ValidationInfo) -> Any:
    """What is no object cannot be kept, and is ignored as all of it is where nothing is kept."""
    _unread(value)
    if not isinstance(value, dict | None) and info.data.get("store"):
        raise wrong("it must be an object of strings where the answer is stored")
    return value if isinstance(value, dict) else None


class ChatRequest(Dialects, SamplingFields):
    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]

    # These act.
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    tools: Annotated[list[Tool] | None, Field(max_length=MAX_TOOLS)] = None
    tool_choice: Annotated[ToolChoice, Field(description="or a function by name")] = None
    parallel_tool_calls: Annotated[bool | None, Field(description="false: at most one call")] = None
    mm_processor_kwargs: ProcessorOptions | None = None
    media_io_kwargs: Annotated[InputOptions | None, Field(description="for all videos of the request")] = None
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
        BeforeValidator(_pairs, json_schema_input_type=Any),
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
            raise wrong("it needs 'tools'", "tool_choice")
        self._check_results()

    def _check_results(self) -> None:
        """A message that is continued may go on behind its calls."""
        check_results(self.messages[:-1] if self.continue_final_message else self.messages)

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


class DeploymentRequest(ChatRequest):
    """Azure's way to ask: the address names the model, and the body may name it or not."""

    model: NamedByAddress = ""
