"""An answer on /v1/completions: whole, or as the events of a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack

from opsin_server.api.answer.event_stream import DONE, Events, EventStream
from opsin_server.api.answer.generation import Generation
from opsin_server.api.answer.output_text import Piece
from opsin_server.api.answer.prompt_scores import PromptScores, echoed_prompt, prompt_tokens
from opsin_server.api.cancellation import CancelScope
from opsin_server.api.schemas.chat_response import TokenLogprob, event
from opsin_server.api.schemas.completion_request import CompletionRequest
from opsin_server.api.schemas.completion_response import TextChoice, TextCompletion, TextLogprobs
from opsin_server.api.services import Services


async def completion(
    generation: Generation, echoes: Sequence[str], body: CompletionRequest, services: Services
) -> TextCompletion:
    """echoes: what the text of each choice begins with."""
    choices = [TextChoice(text, index, _logprobs(body.logprobs is not None)) for index, text in enumerate(echoes)]
    async for piece in generation.pieces():
        choice = choices[piece.choice]
        choice.text += piece.text
        choice.finish_reason = piece.finish or choice.finish_reason
        _add(choice.logprobs, piece)
    for choice, stream in zip(choices, generation.choices, strict=True):
        if stream.prompt is not None:
            await _add_prompt(choice, stream.prompt, len(echoes[choice.index]), body, services)
    answer = _completion(generation, choices)
    answer.usage = generation.usage()
    return answer


class CompletionStream(EventStream):
    """The same, as it comes: each choice's first event has its echo."""

    def __init__(
        self,
        generation: Generation,
        cancellation: CancelScope,
        held: AsyncExitStack,
        echoes: Sequence[str],
        wants_logprobs: bool,
        include_usage: bool,
        usage_in_every_chunk: bool,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(generation, cancellation, held, include_usage, usage_in_every_chunk, headers)
        self._echoes, self._wants_logprobs = list(echoes), wants_logprobs

    async def _events(self) -> AsyncIterator[Events]:
        async for piece in self._generation.pieces():
            text = self._echoes[piece.choice] + piece.text
            self._echoes[piece.choice] = ""
            choice = TextChoice(text, piece.choice, _logprobs(self._wants_logprobs), piece.finish)
            _add(choice.logprobs, piece)
            data = self._chunk([choice], self._usage_in_every_chunk)
            if self._generation.ended:
                data += (self._chunk([], True) if self._include_usage else b"") + DONE
            yield Events(data, self._generation.ended)

    def _chunk(self, choices: list[TextChoice], with_usage: bool) -> bytes:
        chunk = _completion(self._generation, choices)
        if self._include_usage:
            chunk.usage = self._generation.usage() if with_usage else None
        return event(chunk)


async def _add_prompt(
    choice: TextChoice, scores: PromptScores, echo: int, body: CompletionRequest, services: Services
) -> None:
    """echo: characters in front of the answer."""
    if body.prompt_logprobs is not None:
        choice.prompt_logprobs = await prompt_tokens(scores, body.prompt_logprobs, services)
    if body.echo and body.logprobs is not None and choice.logprobs is not None:
        front, behind = await echoed_prompt(scores, body.logprobs, services), choice.logprobs
        front.tokens += behind.tokens
        front.token_logprobs += behind.token_logprobs
        front.top_logprobs += behind.top_logprobs
        front.text_offset += [echo + offset for offset in behind.text_offset]
        choice.logprobs = front


def _completion(generation: Generation, choices: list[TextChoice]) -> TextCompletion:
    who = generation.who
    return TextCompletion(who.id, who.created, who.model, who.fingerprint, choices)


def _logprobs(wanted: bool) -> TextLogprobs | None:
    return TextLogprobs([], [], [], []) if wanted else None


def _add(logprobs: TextLogprobs | None, piece: Piece) -> None:
    if logprobs is None:
        return
    for token, offset in zip(piece.logprobs, piece.offsets, strict=True):
        logprobs.tokens.append(token.token)
        logprobs.token_logprobs.append(token.logprob)
        logprobs.top_logprobs.append(_top(token))
        logprobs.text_offset.append(offset)


def _top(token: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens, and the drawn one. Of those with one text, as parts of characters, the likeliest counts."""
    found: dict[str, float] = {}
    for other in token.top_logprobs:
        found.setdefault(other.token, other.logprob)
    found.setdefault(token.token, token.logprob)
    return found
