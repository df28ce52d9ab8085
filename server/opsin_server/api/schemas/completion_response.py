"""What goes out on /v1/completions. A chunk of a stream has the form of the whole."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from opsin_server.api.schemas.chat_response import Finish, Usage
from opsin_server.api.schemas.prompt_logprobs import PromptTokens


class TextLogprobs(msgspec.Struct):
    """None: of a prompt's first token, or a picture's place."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(msgspec.Struct):
    text: str
    index: int = 0
    logprobs: TextLogprobs | None = None
    finish_reason: Finish | None = None
    prompt_logprobs: PromptTokens | UnsetType = UNSET


class TextCompletion(msgspec.Struct):
    """usage: as of a chat's chunk."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET
    object: str = "text_completion"
