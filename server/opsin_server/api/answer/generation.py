"""One answer being generated: the engine's outputs read as pieces of text, timed, counted, and summed up at the end."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from opsin_server.api.answer.adapter_use import AdapterUse
from opsin_server.api.answer.output_text import OutputText, Piece
from opsin_server.api.engine_status import TokenStream
from opsin_server.api.schemas.chat_response import (
    AssistantMessage,
    Choice,
    Chunk,
    ChunkChoice,
    Completion,
    Finish,
    Logprobs,
    PromptDetails,
    TokenLogprob,
    Usage,
)
from opsin_server.api.token_usage import TokenUsage
from opsin_server.ipc.messages import Output
from opsin_server.metrics import Metrics


@dataclass(frozen=True)
class Identity:
    """What every chunk of an answer repeats."""

    id: str
    model: str
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))


class Generation:
    """started: when the request came, by `time.perf_counter`. usage: is filled while the answer comes."""

    def __init__(
        self,
        identity: Identity,
        stream: TokenStream,
        text: OutputText,
        wants_logprobs: bool,
        usage: TokenUsage,
        started: float,
        metrics: Metrics,
        adapter_use: AdapterUse | None = None,
    ) -> None:
        self._who, self._wants_logprobs = identity, wants_logprobs
        self._stream, self._text = stream, text
        self._usage, self._metrics, self._adapter_use = usage, metrics, adapter_use
        self._started, self._last_token = started, 0.0

    async def pieces(self) -> AsyncIterator[Piece]:
        """Ends after one with `finish`. The engine is told at once when a stop string ended it. Raises EngineFailed."""
        async for output in self._stream:
            self._note(output)
            piece = self._text.read(output)
            self._usage.completion_tokens = self._text.tokens
            if piece.finish is not None:
                self._usage.finish = piece.finish
                if output.finish is None:
                    self._stream.cancel()
            if piece:
                yield piece

    def _note(self, output: Output) -> None:
        usage, now = self._usage, time.perf_counter()
        usage.cached_tokens = max(usage.cached_tokens, output.cached_tokens)
        if usage.queue_seconds is None:
            usage.queue_seconds = output.queue_seconds
            self._metrics.queue.observe(output.queue_seconds)
            if self._adapter_use is not None:
                self._adapter_use.start(output)
        if not output.ids:
            return
        if usage.first_token_seconds is None:
            usage.first_token_seconds = now - self._started
            self._metrics.first_token.observe(usage.first_token_seconds)
        else:
            self._metrics.inter_token.observe((now - self._last_token) / len(output.ids))
        self._last_token = now

    def usage(self) -> Usage:
        used = self._usage
        prompt, answer, images = used.prompt_tokens, used.completion_tokens, used.image_tokens
        details = PromptDetails(used.cached_tokens, images, prompt - images)
        return Usage(prompt, answer, prompt + answer, details)

    async def completion(self) -> Completion:
        """The whole answer."""
        text: list[str] = []
        logprobs: list[TokenLogprob] = []
        finish: Finish = "stop"
        async for piece in self.pieces():
            text.append(piece.text)
            logprobs += piece.logprobs
            finish = piece.finish or finish
        who = self._who
        choice = Choice(AssistantMessage("".join(text)), finish, self.logprobs(logprobs))
        return Completion(who.id, who.created, who.model, who.fingerprint, [choice], self.usage())

    def logprobs(self, content: list[TokenLogprob]) -> Logprobs | None:
        return Logprobs(content) if self._wants_logprobs else None

    def chunk(self, *choices: ChunkChoice) -> Chunk:
        who = self._who
        return Chunk(who.id, who.created, who.model, who.fingerprint, list(choices))
