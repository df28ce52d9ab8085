"""What is to be embedded, before it has any model's form, and how it reaches the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from opsin_plugins.spec import U8, Clip
from opsin_server.errors import BadRequest
from opsin_server.ipc.messages import Pooling
from opsin_server.text.conversation import Message
from opsin_server.text.encode_prompt import Prompt
from opsin_server.text.tokenizer import Tokenizer

FAR_TOO_LONG = 4  # times what a context of the longest tokens could hold


@dataclass(frozen=True)
class TextInput:
    """dressed: whether it gets the tokens that the tokenizer puts in front of a text and behind it."""

    text: str
    param: str
    dressed: bool = True


@dataclass(frozen=True)
class TokenInput:
    """Ids as they are."""

    ids: tuple[int, ...]
    param: str


@dataclass(frozen=True)
class ConversationInput:
    """As the model's chat template renders it. opens: with the head of an answer behind it."""

    messages: tuple[Message, ...]
    param: str
    opens: bool = False


EmbeddingInput: TypeAlias = TextInput | TokenInput | ConversationInput


@dataclass(frozen=True)
class Truncation:
    """To how many tokens a text that is longer is cut (-1: what the model takes), and on which side; None: to none, and
    what is too long is refused."""

    tokens: int | None = None
    side: Literal["left", "right"] = "right"


@dataclass(frozen=True)
class EmbeddingPrompt:
    """tokens: that are counted for the client, image_tokens of them of pictures."""

    prompt: Prompt
    tokens: int
    image_tokens: int = 0


@dataclass(frozen=True)
class EmbeddingFacts:
    """dimensions: values of an embedding. cuts: to how many it may be cut short; None: to any. inputs: what it may be
    of."""

    dimensions: int
    pooling: Pooling
    cuts: frozenset[int] | None
    inputs: tuple[Literal["text", "image"], ...]


class Embedder(Protocol):
    """Makes prompts of what is to be embedded. Holds nothing of a request: threads may share one."""

    facts: EmbeddingFacts

    def check(self, what: EmbeddingInput) -> None:
        """What can be refused before any picture is fetched. Raises BadRequest."""

    def encode(
        self, what: EmbeddingInput, visuals: Sequence[U8 | Clip], context: int, truncation: Truncation
    ) -> EmbeddingPrompt:
        """visuals: of a conversation, in the order of `visual_parts`. context: tokens that the engine takes. Raises
        BadRequest."""


def text_ids(tokenizer: Tokenizer, what: TextInput, context: int, truncation: Truncation) -> list[int]:
    """A text's ids, where a special token that it spells is text. Raises BadRequest."""
    text, room = what.text, context
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest("a text holds half of a surrogate pair", param=what.param) from error
    far = FAR_TOO_LONG * context * tokenizer.longest_token
    if len(text) > far:
        if truncation.tokens is None:
            raise too_long(f"more than {far:,} characters", context, what.param)
        text = text[:far] if truncation.side == "right" else text[-far:]
    opening, closing = (tokenizer.opening, tokenizer.closing) if what.dressed else ([], [])
    ids = _plain_ids(tokenizer, text)
    if truncation.tokens is not None:
        room = cut_to(truncation, context, what.param) - len(opening) - len(closing)
        if room < 1:
            raise BadRequest(
                f"{len(opening) + len(closing)} tokens stand around a text", param="truncate_prompt_tokens"
            )
        ids = shortened(ids, room, truncation)
    return [*opening, *ids, *closing]


def cut_to(truncation: Truncation, context: int, param: str) -> int:
    """How many tokens are left of what is cut. Raises BadRequest for more than the model takes."""
    assert truncation.tokens is not None
    if truncation.tokens > context:
        raise BadRequest(
            f"'truncate_prompt_tokens' is {truncation.tokens}; this model takes {context} tokens",
            param="truncate_prompt_tokens",
        )
    return context if truncation.tokens < 0 else truncation.tokens


def shortened(ids: list[int], room: int, truncation: Truncation) -> list[int]:
    return ids[:room] if truncation.side == "right" else ids[max(0, len(ids) - room) :]


def check_length(tokens: int, context: int, param: str) -> None:
    """Raises BadRequest."""
    if tokens > context:
        raise too_long(f"{tokens} tokens", context, param)


def too_long(length: str, context: int, param: str) -> BadRequest:
    return BadRequest(
        f"The model's context holds {context} tokens, and this input has {length}: shorten it, or have it cut with "
        "'truncate_prompt_tokens'",
        param=param,
        code="context_length_exceeded",
    )


def _plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """As a text alone is encoded, unless it spells a token that it must not become."""
    if not any(added in text for added in tokenizer.added):
        ids = tokenizer.encode(text)
        if (tokenizer.marker_ids | {*tokenizer.opening, *tokenizer.closing}).isdisjoint(ids):
            return ids
    return tokenizer.encode_plain(text)
