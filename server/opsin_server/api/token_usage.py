"""What an answer took: tokens and seconds, for the client's usage, the metrics and the log."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TokenUsage:
    """image_tokens, cached_tokens: of the prompt's. queue_seconds: from the engine's arrival to the first step;
    first_token_seconds: from the request's. finish: why the answer ended, "stop" or "length"; None while it has not."""

    prompt_tokens: int = 0
    image_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    queue_seconds: float | None = None
    first_token_seconds: float | None = None
    finish: str | None = None
