"""What goes out of a prompt's own tokens, field by field as vLLM names them."""

from __future__ import annotations

import msgspec


class PromptToken(msgspec.Struct):
    """rank: among all tokens that could stand there; 1: the likeliest."""

    logprob: float
    rank: int
    decoded_token: str


PromptTokens = list[dict[str, PromptToken] | None]
