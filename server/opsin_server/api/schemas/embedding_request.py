"""The body of POST /v1/embeddings. Every field acts, passes because it changes nothing, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from opsin_server.api.schemas.chat_request import ProcessorOptions
from opsin_server.api.schemas.deployments import NamedByAddress
from opsin_server.api.schemas.sampling_fields import Priority
from opsin_server.chat.fields import WHOLE, Ignored, Strict, missing, only, whole, wrong
from opsin_server.chat.messages import ChatMessage, ContentPart

MAX_INPUTS = 2048  # as OpenAI has it
SEPARATORS = 400_000  # commas and brackets of a body: OpenAI takes 300,000 tokens

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
_KINDS = {str: "~string", int: "~tokens", float: "~tokens", list: "~token_lists", dict: "~parts"}


def _form(value: Any) -> str | None:
    """Of an input, by its first entry."""
    if isinstance(value, list):
        found = _KINDS.get(type(value[0])) if value else "~parts"
        return "~parts" if found == "~string" else found
    return "~string" if isinstance(value, str) else None


def _entry(value: Any) -> str | None:
    return "~string" if isinstance(value, str) else "~part" if isinstance(value, dict) else None


def _by(form: Callable[[Any], str | None], message: str) -> Discriminator:
    return Discriminator(form, custom_error_type="wrong", custom_error_message=message)


def _whole_ids(value: Any) -> Any:
    """Looked at one by one only where there is a float: there may be hundreds of thousands."""
    return list(map(whole, value)) if isinstance(value, list) and float in set(map(type, value)) else value


Entry = Annotated[
    Annotated[str, Tag("~string")] | Annotated[ContentPart, Tag("~part")],
    _by(_entry, "must be a string or a content part, as the entries before it"),
]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True), BeforeValidator(_whole_ids)]
Input = Annotated[
    Annotated[str, Tag("~string")]
    | Annotated[TokenIds, Tag("~tokens")]
    | Annotated[list[TokenIds], Field(max_length=MAX_INPUTS, fail_fast=True), Tag("~token_lists")]
    | Annotated[list[Entry], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True), Tag("~parts")],
    _by(_form, "must be a string, a list of strings or of content parts, a list of token ids, or a list of those"),
]


class EmbeddingRequest(Strict):
    model: Annotated[str, Field(min_length=1)]

    # These act. One of `input` and `messages` is given.
    input: Annotated[
        Input | None, Field(description="in a list, each entry has an embedding of its own; an image is a part")
    ] = None
    messages: Annotated[
        Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)] | None,
        Field(description="one embedding, of the whole conversation (vLLM)"),
    ] = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None, Field(description='"base64": of float32, little-endian')
    ] = None
    dimensions: Annotated[
        Annotated[int, Field(ge=1, lt=2**31), WHOLE] | None,
        Field(description="the model's own number, or fewer where it was trained for that"),
    ] = None
    truncate_prompt_tokens: Annotated[
        Annotated[int, Field(ge=-1, lt=2**31), WHOLE] | None,
        Field(description="longer texts are cut to so many tokens; -1: to what the model takes (vLLM)"),
    ] = None
    truncation_side: Annotated[
        Literal["left", "right"] | None, Field(description='where they are cut; "right" is the default (vLLM)')
    ] = None
    add_special_tokens: Annotated[
        bool | None, Field(description="of `input`: what the tokenizer puts around a text; true is the default (vLLM)")
    ] = None
    add_generation_prompt: Annotated[
        bool | None, Field(description="of `messages`: with the head of an answer; false is the default (vLLM)")
    ] = None
    mm_processor_kwargs: ProcessorOptions | None = None
    priority: Priority = None

    # These cannot change an embedding.
    user: Ignored = None
    metadata: Ignored = None
    safety_identifier: Ignored = None
    request_id: Ignored = None  # vLLM
    rid: Ignored = None  # SGLang
    cache_salt: Ignored = None  # vLLM: every cache here is keyed by content, and gives what was asked

    # These would change it, and pass only where they would not.
    continue_final_message: Annotated[None, only(False)] = None
    chat_template: Annotated[None, only()] = None
    chat_template_kwargs: Annotated[None, only({})] = None
    normalize: Annotated[None, only(True)] = None
    use_activation: Annotated[None, only(True)] = None
    embed_dtype: Annotated[None, only("float32")] = None
    endianness: Annotated[None, only("native", "little")] = None
    input_type: Annotated[None, only()] = None
    extra_body: Annotated[None, only({})] = None

    @model_validator(mode="after")
    def _fields_agree(self) -> EmbeddingRequest:
        if self.input is None and self.messages is None:
            raise missing("input")
        if self.input is not None and self.messages is not None:
            raise wrong("give 'input' or 'messages', not both", "messages")
        if self.input == "":
            raise wrong("it must not be an empty string", "input")
        for index, entry in enumerate(self.input if isinstance(self.input, list) else ()):
            if entry == "" or (isinstance(entry, ContentPart) and entry.text == ""):
                raise wrong("it must not be an empty string", f"input[{index}]")
        if self.truncate_prompt_tokens == 0:
            raise wrong("0 tokens of a text have no embedding", "truncate_prompt_tokens")
        return self


class DeploymentEmbeddingRequest(EmbeddingRequest):
    """Azure's way to ask: the address names the model, and the body may name it or not."""

    model: NamedByAddress = ""
