"""The body of POST /v1/messages, Anthropic's. Every field acts, passes because it changes nothing, or is refused by
name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag, model_validator

from opsin_server.api.schemas.messages_blocks import TEXT_OR_BLOCKS, Block, TextBlock
from opsin_server.api.schemas.sampling_fields import MAX_STOPS, Stop, Tokens
from opsin_server.api.schemas.structured_outputs import Schema
from opsin_server.api.schemas.tools import MAX_TOOLS, Name
from opsin_server.chat.fields import WHOLE, Ignored, Strict, missing, only, unsupported, wrong
from opsin_server.chat.messages import known
from opsin_server.chat.open_calls import OpenCalls

MessageRole = Literal["user", "assistant", "system"]
ChoiceType = Literal["auto", "any", "tool", "none"]
# Of a role, the types that are no text.
_OTHERS = {"user": ("image", "tool_result"), "assistant": ("tool_use", "thinking"), "system": ()}


def _custom_only(value: Any) -> Any:
    if value not in (None, "custom"):
        raise unsupported(value, 'tools of type "custom" are accepted: none runs on this server')
    return value


System = Annotated[
    Annotated[str, Tag("~string")] | Annotated[list[TextBlock], Tag("~parts")] | Annotated[None, Tag("~null")],
    TEXT_OR_BLOCKS,
]


class InputMessage(Strict):
    role: Annotated[MessageRole, known(MessageRole, "roles")]
    content: Annotated[
        Annotated[str, Tag("~string")] | Annotated[list[Block], Tag("~parts")],
        TEXT_OR_BLOCKS,
    ]

    @model_validator(mode="after")
    def _holds_what_its_role_may(self) -> InputMessage:
        if self.content == [] and self.role != "assistant":
            raise wrong("must hold at least one block", "content")
        before = "tool_result"
        for index, block in enumerate(self.blocks):
            if block.type != "text" and block.type not in _OTHERS[self.role]:
                raise wrong(f'"{block.type}" is not accepted from "{self.role}"', f"content[{index}].type")
            if block.type == "tool_result" and before != "tool_result":
                raise wrong("results of tools stand in front of all else in a message", f"content[{index}].type")
            before = block.type
        return self

    @property
    def blocks(self) -> list[Block]:
        return self.content if isinstance(self.content, list) else []


class MessagesTool(Strict):
    type: Annotated[Literal["custom"] | None, BeforeValidator(_custom_only)] = None
    name: Name
    description: str | None = None
    input_schema: Annotated[dict[str, Any], Field(description="a JSON schema of an object")]
    strict: Annotated[bool | None, Field(description="calls are held to the schema also where they are free")] = None

    # These cannot change an answer.
    cache_control: Ignored = None
    eager_input_streaming: Ignored = None

    # These would change the answer, and pass only where they would not.
    allowed_callers: Annotated[None, only(["direct"])] = None
    defer_loading: Annotated[None, only(False)] = None
    input_examples: Annotated[None, only([])] = None


class MessagesToolChoice(Strict):
    type: Annotated[ChoiceType, known(ChoiceType, "choices")]
    name: Annotated[Name | None, Field(description='with the type "tool"')] = None
    disable_parallel_tool_use: Annotated[bool | None, Field(description="true: at most one call")] = None

    @model_validator(mode="after")
    def _holds_its_type(self) -> MessagesToolChoice:
        if self.type == "tool" and self.name is None:
            raise missing("name")
        if self.type != "tool" and self.name is not None:
            raise wrong(f'a choice of type "{self.type}" must not have "name"', "name")
        return self


class OutputFormat(Strict):
    type: Annotated[Literal["json_schema"], known(Literal["json_schema"], "formats")]
    schema_: Annotated[Schema, Field(alias="schema", description="of the answer")]


class OutputConfig(Strict):
    format: OutputFormat | None = None

    # This would change the answer, and passes only where it would not.
    effort: Annotated[None, only("high")] = None


class Thinking(Strict):
    """Where a chat template can be told (`enable_thinking`), a model is told not to think."""

    type: Annotated[Literal["disabled"], known(Literal["disabled"], "kinds of thinking")]


class CountTokensRequest(Strict):
    """The body of POST /v1/messages/count_tokens: a conversation and what is shown with it."""

    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[InputMessage], Field(min_length=1, fail_fast=True)]

    # These act.
    system: System = None
    tools: Annotated[list[MessagesTool] | None, Field(max_length=MAX_TOOLS)] = None
    tool_choice: MessagesToolChoice | None = None
    output_config: OutputConfig | None = None
    thinking: Thinking | None = None

    # These cannot change an answer.
    cache_control: Ignored = None
    user_profile_id: Ignored = None
    workspace_id: Ignored = None

    # These would change the answer, and pass only where they would not.
    mcp_servers: Annotated[None, only([])] = None
    context_management: Annotated[None, only({})] = None
    speed: Annotated[None, only("standard")] = None

    @model_validator(mode="after")
    def _fields_agree(self) -> CountTokensRequest:
        names = [tool.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise wrong("two tools have one name", "tools")
        if any(block.type == "tool_use" for block in self.messages[-1].blocks):
            raise wrong("the last message calls tools: their results must follow", "messages")
        choice = self.tool_choice
        if choice is not None and choice.type in ("any", "tool") and not names:
            raise wrong("it is allowed where there are tools", "tool_choice")
        if choice is not None and choice.name is not None and choice.name not in names:
            raise wrong(f"there is no tool {choice.name!r} in 'tools'", "tool_choice.name")
        self._check_results()
        return self

    def _check_results(self) -> None:
        """The results of a message's calls are in the next one."""
        calls = OpenCalls("block")
        for number, message in enumerate(self.messages):
            for index, block in enumerate(message.blocks):
                if block.type == "tool_result":
                    calls.answer(block.tool_use_id or "", f"messages[{number}].content[{index}].tool_use_id")
            if calls.waiting:
                raise wrong(
                    f"`tool_use` ids were found without `tool_result` blocks immediately after: {calls.ids}. Each "
                    "`tool_use` block must have a corresponding `tool_result` block in the next message",
                    f"messages[{number - 1}].content",
                )
            calls.call(block.id or "" for block in message.blocks if block.type == "tool_use")


class MessagesRequest(CountTokensRequest):
    max_tokens: Tokens
    stop_sequences: Annotated[
        list[Stop] | None, Field(max_length=MAX_STOPS, description="empty strings are left out")
    ] = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Annotated[int, Field(ge=0, lt=2**31), WHOLE] | None, Field(description="0: all")] = None
    stream: bool | None = None

    # These cannot change an answer.
    metadata: Ignored = None
    billing_policy: Ignored = None

    # These would change the answer, and pass only where they would not.
    container: Annotated[None, only()] = None
    diagnostics: Annotated[None, only()] = None
    compaction: Annotated[None, only()] = None
    fallbacks: Annotated[None, only([])] = None
    fallback_credit_token: Annotated[None, only()] = None
    thread: Annotated[None, only(False, why="no conversation is kept on this server")] = None
    inference_geo: Annotated[None, only()] = None
    service_tier: Annotated[None, only("auto", "standard_only")] = None
