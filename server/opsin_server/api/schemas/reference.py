"""docs/fields.md and docs/responses-fields.md, written from the request models:

.venv/bin/python -m opsin_server.api.schemas.reference docs/fields.md docs/responses-fields.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as bounds
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from opsin_server.api.schemas.chat_request import ChatRequest, ProcessorOptions
from opsin_server.api.schemas.completion_request import CompletionRequest
from opsin_server.api.schemas.embedding_request import EmbeddingRequest
from opsin_server.api.schemas.messages_blocks import Block, ImageSource, ResultBlock, TextBlock
from opsin_server.api.schemas.messages_request import (
    CountTokensRequest,
    InputMessage,
    MessagesRequest,
    MessagesTool,
    MessagesToolChoice,
    OutputConfig,
    OutputFormat,
    Thinking,
)
from opsin_server.api.schemas.responses import (
    ResponsesRequest,
    ResponseStreamOptions,
    ResponseTool,
    ResponseToolChoice,
    TextFormat,
    TextOptions,
)
from opsin_server.api.schemas.responses_items import InputItem, InputPart
from opsin_server.api.schemas.sampling_fields import StreamOptions
from opsin_server.api.schemas.structured_outputs import JsonSchemaFormat, ResponseFormat, StructuredOutputs
from opsin_server.api.schemas.tokenize import DetokenizeRequest, TokenizeTextRequest
from opsin_server.api.schemas.tools import FunctionDefinition, NamedChoice, NamedFunction, Tool
from opsin_server.chat.fields import Neutral, Unread, shown
from opsin_server.chat.messages import CalledFunction, ChatMessage, ContentPart, FilePart, ImageURL, MessageToolCall

HEAD = """# Fields of a chat request

What `POST /v1/chat/completions` does with each field that it knows, and behind it [other routes](other-apis.md). The
list is written from the requests' own models; a test keeps the two equal:
`.venv/bin/python -m opsin_server.api.schemas.reference docs/fields.md`.

A field does one of three things: it acts; it cannot change an answer, and is ignored whatever it holds; or it is
accepted only at the values that have no effect, and at any other value is refused with an error that names it. A field
that is in no list is refused by name. Null stands for a field that was left out, whichever it is (a misspelt one too),
and 16.0 for 16."""

SECTIONS: dict[type[BaseModel], tuple[str, str]] = {
    ChatRequest: ("The request", ""),
    StreamOptions: ("`stream_options`", "Without a stream they have no effect."),
    Tool: ("A tool", "A function that the answer may call."),
    FunctionDefinition: ("`function`", ""),
    NamedChoice: ("`tool_choice` by name", "This function must be called."),
    NamedFunction: ("its `function`", ""),
    ResponseFormat: ("`response_format`", "What the answer is held to."),
    JsonSchemaFormat: ("`json_schema`", "Whether `strict` is true or not, the answer is held to the schema."),
    StructuredOutputs: ("`structured_outputs`", "What the answer is held to, by vLLM's names: one of the first five."),
    ProcessorOptions: ("`mm_processor_kwargs`", "For all images of the request."),
    ChatMessage: ("A message", ""),
    MessageToolCall: ("A call", "Of an assistant's message."),
    CalledFunction: ("a call's `function`", ""),
    ContentPart: (
        "A part of a message's content",
        "The types that begin with `input` and `output` are those of OpenAI's Responses API.",
    ),
    ImageURL: ("`image_url`", ""),
    FilePart: ("`file`", ""),
    EmbeddingRequest: (
        "An embeddings request",
        "The body of `POST /v1/embeddings` ([all of it](embeddings.md)). Of `input` and `messages` one is given.",
    ),
    CompletionRequest: ("`POST /v1/completions`", "Raw texts or ids, which are continued."),
    MessagesRequest: ("`POST /v1/messages`", "Anthropic's API."),
    CountTokensRequest: ("`POST /v1/messages/count_tokens`", ""),
    InputMessage: ("A message of Anthropic's API", ""),
    Block: ("A block of its content", "What a block holds is what its type says."),
    ImageSource: ("its `source`", ""),
    ResultBlock: ("A block of a result", ""),
    TextBlock: ("A block of `system`", ""),
    Thinking: (
        "`thinking`",
        "Where the chat template can be told (`enable_thinking`), the model is told not to think.",
    ),
    MessagesTool: ("A tool of Anthropic's API", "None runs on this server."),
    MessagesToolChoice: ("Its `tool_choice`", ""),
    OutputConfig: ("`output_config`", ""),
    OutputFormat: ("its `format`", ""),
    TokenizeTextRequest: ("`POST /tokenize` of a prompt", "Of a conversation: the fields of a chat request."),
    DetokenizeRequest: ("`POST /detokenize`", ""),
}
RESPONSES_HEAD = """# Fields of a Responses request

What `POST /v1/responses` ([for users](responses.md)) does with each field that it knows. The list is written from the
request's own model (`.venv/bin/python -m opsin_server.api.schemas.reference docs/responses-fields.md`); a test keeps
the two equal.

As [of a chat request](fields.md): a field acts; or it cannot change an answer, and is ignored whatever it holds; or it
is accepted only at the values that have no effect, and at any other value is refused with an error that names it. A
field that is in no list is refused by name. Null stands for a field that was left out, and 16.0 for 16."""
RESPONSES_SECTIONS: dict[type[BaseModel], tuple[str, str]] = {
    ResponsesRequest: ("The request", ""),
    InputItem: (
        "An item of `input`",
        "Others, of built-in tools, are refused by name. An answer's items are accepted as they came.",
    ),
    InputPart: ("A part of a message's content", "Or of a function's `output`."),
    ResponseTool: ("A tool", "A function, which the client runs."),
    ResponseToolChoice: ("`tool_choice` by name", "This function must be called."),
    TextOptions: ("`text`", ""),
    TextFormat: ("its `format`", ""),
    ResponseStreamOptions: ("`stream_options`", ""),
}
PAGES = {"fields.md": (HEAD, SECTIONS), "responses-fields.md": (RESPONSES_HEAD, RESPONSES_SECTIONS)}
TITLES = SECTIONS | RESPONSES_SECTIONS
TYPES = {str: "string", int: "whole number", float: "number", bool: "true or false", dict: "object"}


def page(name: str) -> str:
    head, sections = PAGES[name]
    return "\n\n".join([head, *(block for model in sections for block in section(model))]) + "\n"


def section(model: type[BaseModel]) -> Iterator[str]:
    title, remark = TITLES[model]
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    ignored = [name for name, field in fields.items() if validator(field, Unread)]
    neutral = {name: found for name, field in fields.items() if (found := validator(field, Neutral))}
    acting = {name: field for name, field in fields.items() if name not in ignored and name not in neutral}
    own = model.__annotations__
    acting = dict(sorted(acting.items(), key=lambda item: item[0] not in own))  # what is inherited comes last
    yield f"## {title}"
    if remark:
        yield remark
    rows = [(f"`{name}`", words(field.annotation, field.metadata), remark_of(field)) for name, field in acting.items()]
    if rows:
        yield table(("acts", "values", ""), rows)
    if ignored:
        yield f"Ignored: {', '.join(f'`{name}`' for name in sorted(ignored))}."
    if neutral:
        yield table(("passes only at", "values"), [(f"`{name}`", values(neutral[name])) for name in sorted(neutral)])


def validator(field: FieldInfo, kind: type[Any]) -> Any:
    """The field's validator of this kind, or None."""
    found = (entry.func for entry in field.metadata if isinstance(entry, BeforeValidator))
    return next((function for function in found if isinstance(function, kind)), None)


def values(neutral: Neutral) -> str:
    return " · ".join(f"`{shown(value)}`" for value in neutral.accepted) or "`null` alone"


def remark_of(field: FieldInfo) -> str:
    needed = "required" if field.is_required() else ""
    return "; ".join(part for part in (needed, field.description or "") if part)


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type as its sender sees it: without null, which every field may be."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return words(arguments[0], [*flat(arguments[1:]), *metadata])
    if origin in (Union, UnionType):
        return " or ".join(words(kind, metadata) for kind in arguments if not is_null(kind))
    if origin is Literal:
        return " · ".join(f"`{shown(value)}`" for value in arguments)
    if origin is list:
        return f"list{extent(metadata)} of {words(arguments[0])}"
    if origin is dict and arguments[1] is Any:
        return "object"
    if origin is dict:
        return f"object{extent(metadata)} of {words(arguments[1])}"
    if annotation in TITLES:
        return f"[{TITLES[annotation][0].lower()}](#{anchor(TITLES[annotation][0])})"
    return TYPES[annotation] + limits(annotation, metadata)


def is_null(kind: Any) -> bool:
    return (get_args(kind)[0] if get_origin(kind) is Annotated else kind) is NoneType


def flat(metadata: Iterable[Any]) -> Iterator[Any]:
    """`Field(ge=0)` holds its bounds inside."""
    for entry in metadata:
        yield from entry.metadata if isinstance(entry, FieldInfo) else (entry,)


def limits(kind: type, metadata: Sequence[Any]) -> str:
    if kind is str:
        return extent(metadata, " characters")
    at = {type(entry): entry for entry in metadata}
    low = f"{at[bounds.Ge].ge:,}" if bounds.Ge in at else f"above {at[bounds.Gt].gt:,}" if bounds.Gt in at else ""
    high = f"{at[bounds.Le].le:,}" if bounds.Le in at else f"{at[bounds.Lt].lt - 1:,}" if bounds.Lt in at else ""
    return f" ({low} to {high})" if low and high else ""


def extent(metadata: Sequence[Any], unit: str = "") -> str:
    least = next((entry.min_length for entry in metadata if isinstance(entry, bounds.MinLen)), 0)
    most = next((entry.max_length for entry in metadata if isinstance(entry, bounds.MaxLen)), 0)
    return f" (at most {most:,}{unit})" if most else " (not empty)" if least else ""


def anchor(title: str) -> str:
    """GitHub's, of a heading."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


if __name__ == "__main__":
    # (A path and no redirection: a shell would have emptied the page before a failed import.)
    for path in map(Path, sys.argv[1:]):
        path.write_text(page(path.name), encoding="utf-8")
