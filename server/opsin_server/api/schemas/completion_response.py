"""What goes out on /v1/completions. A chunk of a stream has the form of the whole."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from opsin_server.api.schemas.chat_response import Finish, Usage


class TextLogprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(msgspec.Struct):
    text: str
    index: int = 0
    logprobs: TextLogprobs | None = None
    finish_reason: Finish | None = None


class TextCompletion(msgspec.Struct):
    """usage: as of a chat's chunk."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET
    object: str = "text_completion"
