"""One answer being generated: the engine's outputs read as pieces of text, timed, counted, and summed up at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from opsin_server.api.answer.adapter_use import AdapterUse
from opsin_server.api.answer.output_text import OutputText, Piece
from opsin_server.api.answer.prompt_scores import PromptScores
from opsin_server.api.engine_status import TokenStream
from opsin_server.api.schemas.chat_response import (
    AssistantMessage,
    CalledFunction,
    Choice,
    Chunk,
    ChunkChoice,
    Completion,
    CompletionDetails,
    Finish,
    Logprobs,
    PromptDetails,
    TokenLogprob,
    ToolCall,
    Usage,
)
from opsin_server.api.schemas.prompt_logprobs import PromptTokens
from opsin_server.api.token_usage import TokenUsage
from opsin_server.ipc.messages import Output
from opsin_server.metrics import Metrics
from opsin_server.text.reasoning import ReasoningReader
from opsin_server.text.tool_reader import ToolCallReader


@dataclass(frozen=True)
class Identity:
    """What every chunk of an answer repeats."""

    id: str
    model: str
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(eq=False)
class ChoiceStream:
    """One of the answers to a prompt: what the engine says of it, and the text that this becomes."""

    index: int
    stream: TokenStream
    text: OutputText
    tools: ToolCallReader | None = None
    reasoning: ReasoningReader | None = None
    first_of_prompt: bool = True  # the other choices find what this one has computed
    cached_tokens: int = 0  # of its prompt
    prompt: PromptScores | None = None
    last_token: float = 0.0

    async def pieces(self, note: Callable[[ChoiceStream, Output], None]) -> AsyncIterator[Piece]:
        """Ends after one with `finish`. The engine is told at once when a stop string ended it. note: is told of every
        output. Raises EngineFailed."""
        async for output in self.stream:
            for part in output.prompt:
                assert self.prompt is not None
                self.prompt.add(part)
            if not (output.ids or output.finish):
                continue
            pieces = self._read(output)
            note(self, output)
            if pieces[-1].finish is not None and output.finish is None:
                self.stream.cancel()
            for piece in filter(None, pieces):
                yield piece

    def _read(self, output: Output) -> list[Piece]:
        """Where tokens of thoughts are counted, one of each token."""
        pieces: list[Piece] = []
        for one in (output,) if self.reasoning is None else one_by_one(output):
            before, piece = self.text.tokens, self.text.read(one)
            piece.choice = self.index
            if self.reasoning is not None:
                _read_thoughts(piece, self.reasoning, self.text.tokens - before)
            if self.tools is not None:
                _read_calls(piece, self.tools)
            pieces.append(piece)
            if piece.finish is not None:
                break
        return pieces


def one_by_one(output: Output) -> Iterator[Output]:
    """The same in outputs of one token at most; the last has what belongs to the end."""
    *early, last = range(max(1, len(output.ids)))
    for place in early:
        yield Output(output.request_id, output.ids[place : place + 1], output.logprobs[place : place + 1])
    yield replace(output, ids=output.ids[last:], logprobs=output.logprobs[last:])


def _read_thoughts(piece: Piece, reader: ReasoningReader, tokens: int) -> None:
    """Takes the thoughts out of a piece's text. tokens: that it was made of."""
    found = [reader.push(piece.text, tokens)]
    if piece.finish is not None:
        found.append(reader.finish())
    piece.text = "".join(part.text for part in found)
    piece.thoughts = "".join(part.thoughts for part in found)


def _read_calls(piece: Piece, reader: ToolCallReader) -> None:
    """Takes the calls out of a piece's text."""
    found = [reader.push(piece.text)]
    if piece.finish is not None:
        found.append(reader.finish())
        piece.cuts_call = reader.cut
        if reader.count and piece.finish == "stop" and not reader.cut:
            piece.finish = "tool_calls"
    piece.text = "".join(part.text for part in found)
    piece.calls = tuple(call for part in found for call in part.calls)


class Generation:
    """started: when the request came, by `time.perf_counter`. usage: is filled while the answer comes. keep: is awaited
    with the whole answer before its last piece goes out. prompt_tokens: what is said of the prompt, at the end."""

    def __init__(
        self,
        identity: Identity,
        choices: Sequence[ChoiceStream],
        wants_logprobs: bool,
        usage: TokenUsage,
        started: float,
        metrics: Metrics,
        adapter_use: AdapterUse | None = None,
        keep: Callable[[Completion], Awaitable[None]] | None = None,
        prompt_tokens: Callable[[], Awaitable[PromptTokens]] | None = None,
    ) -> None:
        self.who, self._wants_logprobs = identity, wants_logprobs
        self.choices = choices
        self._usage, self._metrics, self._adapter_use = usage, metrics, adapter_use
        self._started, self._keep, self._prompt_tokens = started, keep, prompt_tokens
        self.ended = False  # from the last piece on

    async def pieces(self) -> AsyncIterator[Piece]:
        """Of all choices, as they come: each choice ends with one that has a `finish`. Raises EngineFailed."""
        readers = [choice.pieces(self._note) for choice in self.choices]
        found, left = self._nothing_yet(), len(readers)
        async for piece in readers[0] if len(readers) == 1 else interleaved(readers):
            if piece.finish is not None:
                self._usage.finish = piece.finish
                left -= 1
            if self._keep is not None:
                found[piece.choice].add(piece)
                if not left:
                    await self._keep(self._completed(found))
            self.ended = not left
            yield piece

    def _note(self, choice: ChoiceStream, output: Output) -> None:
        usage, now = self._usage, time.perf_counter()
        usage.completion_tokens = sum(one.text.tokens for one in self.choices)
        choice.cached_tokens = max(choice.cached_tokens, output.cached_tokens)
        usage.cached_tokens = sum(one.cached_tokens for one in self.choices if one.first_of_prompt)
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
        elif choice.last_token:
            self._metrics.inter_token.observe((now - choice.last_token) / len(output.ids))
        choice.last_token = now

    def usage(self) -> Usage:
        used = self._usage
        prompt, answer, images = used.prompt_tokens, used.completion_tokens, used.image_tokens
        whole = Usage(prompt, answer, prompt + answer, PromptDetails(used.cached_tokens, images, prompt - images))
        readers = [choice.reasoning for choice in self.choices if choice.reasoning is not None]
        if readers:
            whole.completion_tokens_details = CompletionDetails(sum(reader.tokens for reader in readers))
        return whole

    async def completion(self) -> Completion:
        """The whole answer."""
        found = self._nothing_yet()
        async for piece in self.pieces():
            found[piece.choice].add(piece)
        whole = self._completed(found)
        if self._prompt_tokens is not None:
            whole.prompt_logprobs = await self._prompt_tokens()
        return whole

    def _nothing_yet(self) -> list[WholeChoice]:
        return [WholeChoice() for _ in self.choices]

    def _completed(self, found: Sequence[WholeChoice]) -> Completion:
        who = self.who
        choices = [
            Choice(whole.message(), whole.finish, self.logprobs(whole.logprobs), index)
            for index, whole in enumerate(found)
        ]
        return Completion(who.id, who.created, who.model, who.fingerprint, choices, self.usage())

    def logprobs(self, content: list[TokenLogprob]) -> Logprobs | None:
        return Logprobs(content) if self._wants_logprobs else None

    def chunk(self, *choices: ChunkChoice) -> Chunk:
        who = self.who
        return Chunk(who.id, who.created, who.model, who.fingerprint, list(choices))


@dataclass
class WholeChoice:
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Finish = "stop"
    calls: list[ToolCall] = field(default_factory=list)
    thoughts: str = ""

    def add(self, piece: Piece) -> None:
        for delta in piece.calls:
            if delta.id is not None and delta.name is not None:
                self.calls.append(ToolCall(delta.id, CalledFunction(delta.name, "")))
            self.calls[delta.index].function.arguments += delta.arguments
        if piece.cuts_call and piece.finish == "stop":
            self.calls.pop()  # it is none
        self.text.append(piece.text)
        self.thoughts += piece.thoughts
        self.logprobs += piece.logprobs
        self.finish = piece.finish or self.finish

    def message(self) -> AssistantMessage:
        text = "".join(self.text)
        made = AssistantMessage(text or None, tool_calls=self.calls) if self.calls else AssistantMessage(text)
        if self.thoughts:
            made.reasoning_content = self.thoughts
        return made


async def interleaved(readers: Sequence[AsyncIterator[Piece]]) -> AsyncIterator[Piece]:
    """What each reader gives, in the order in which it comes."""
    waiting = {asyncio.ensure_future(_next(reader)): reader for reader in readers}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: readers.index(waiting[task])):
                reader = waiting.pop(task)
                if (piece := task.result()) is not None:
                    waiting[asyncio.ensure_future(_next(reader))] = reader
                    yield piece
    finally:
        for task in waiting:
            task.cancel()


async def _next(reader: AsyncIterator[Piece]) -> Piece | None:
    return await anext(reader, None)
