"""From a checked request to its embeddings: pictures, prompts, limits, and the engine's answers put together."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import numpy as np

from opsin_plugins.spec import U8, Clip, ImageBudget
from opsin_plugins.spec.visual_items import visible_images
from opsin_server.adapters.catalogue import ServedAdapter
from opsin_server.api.answer.adapter_use import AdapterUse
from opsin_server.api.answer.load_visuals import load_visuals, max_video_tokens
from opsin_server.api.engine_status import facts
from opsin_server.api.middleware.request_log import RequestLog
from opsin_server.api.schemas.embedding_request import EmbeddingRequest
from opsin_server.api.schemas.embedding_response import EmbeddingList, EmbeddingUsage, encode, encoded
from opsin_server.api.services import Services
from opsin_server.chat.messages import ContentPart
from opsin_server.chat.to_messages import asked_of_videos, to_messages, to_part
from opsin_server.errors import BadRequest, EngineFailed
from opsin_server.ipc.messages import Output, Sampling, Submit, arrays_of, describe
from opsin_server.text.conversation import Message, TextPart, VideoWish, visual_parts
from opsin_server.text.embedding_input import (
    ConversationInput,
    EmbeddingFacts,
    EmbeddingInput,
    EmbeddingPrompt,
    TextInput,
    TokenInput,
    Truncation,
)

IN_FLIGHT = 32  # inputs of one request that are in the engine at a time: others' answers must not wait for thousands
GREEDY = Sampling(temperature=0.0)


@dataclass
class _Asked:
    """What all inputs of a request have alike. context: tokens that the engine takes. use: of the adapter, as long as
    none of them has been computed."""

    adapter: ServedAdapter | None
    context: int
    truncation: Truncation
    priority: int = 0
    use: AdapterUse | None = None


async def embed(
    body: EmbeddingRequest, adapter: ServedAdapter | None, log: RequestLog, services: Services, held: AsyncExitStack
) -> bytes:
    """The answer's body. adapter: None is the base model. held: what its closing gives back. Raises BadRequest."""
    log.model, log.adapter = body.model, None if adapter is None else adapter.label
    engine, embedder = facts(services.engine), services.embedder
    inputs = inputs_of(
        body, engine.max_image_tokens, None if adapter is None else adapter.max_pixels, max_video_tokens(engine)
    )
    size = check_dimensions(body.dimensions, embedder.facts)
    for one in inputs:
        embedder.check(one)
    visuals = await _visuals(inputs, services)
    truncation = Truncation(body.truncate_prompt_tokens, body.truncation_side or "right")
    asked = _Asked(adapter, engine.max_context, truncation, body.priority or 0)
    if adapter is not None:
        asked.use = held.enter_context(AdapterUse(adapter.name, services.metrics.adapters, log.usage))
    found = await _all(inputs, visuals, asked, log, services)
    data = []
    for index, vector in enumerate(found):
        data.append(encoded(index, shortened(vector, size), body.encoding_format))
        await asyncio.sleep(0)  # (thousands of numbers each: others are answered meanwhile)
    tokens = log.usage.prompt_tokens
    return encode(EmbeddingList(data, body.model, EmbeddingUsage(tokens, tokens)))


def inputs_of(
    body: EmbeddingRequest,
    max_image_tokens: int | None,
    max_pixels: int | None = None,
    video_tokens: int | None = None,
) -> list[EmbeddingInput]:
    """max_pixels: of a picture where the request does not say, as an adapter was trained. video_tokens: for how many of
    a video there is room."""
    options, dressed = body.mm_processor_kwargs, body.add_special_tokens is not False
    said = None if options is None else options.max_pixels
    budget = ImageBudget(max_pixels if said is None else said, max_image_tokens)
    of_videos = VideoWish(max_tokens=video_tokens)
    of_videos = of_videos if options is None else asked_of_videos(options, of_videos, "mm_processor_kwargs")
    if body.messages is not None:
        messages = to_messages(body.messages, budget, of_videos=of_videos)
        return [ConversationInput(tuple(messages), "messages", body.add_generation_prompt is True)]
    given = body.input
    if isinstance(given, str):
        return [TextInput(given, "input", dressed)]
    assert given is not None
    if given and isinstance(given[0], int):
        return [TokenInput(tuple(token for token in given if isinstance(token, int)), "input")]
    return [_input(one, f"input[{index}]", budget, of_videos, dressed) for index, one in enumerate(given)]


def _input(
    one: str | int | list[int] | ContentPart, param: str, budget: ImageBudget, of_videos: VideoWish, dressed: bool
) -> EmbeddingInput:
    if isinstance(one, str):
        return TextInput(one, param, dressed)
    if isinstance(one, list):
        return TokenInput(tuple(one), param)
    assert isinstance(one, ContentPart)
    part = to_part(one, param, budget, of_videos)
    if isinstance(part, TextPart):
        return TextInput(part.text, param, dressed)
    return ConversationInput((Message("user", (part,)),), param)


def check_dimensions(wanted: int | None, about: EmbeddingFacts) -> int:
    """How many values an embedding gets. Raises BadRequest for fewer than the model was trained to be cut to."""
    own, cuts = about.dimensions, about.cuts
    if wanted is None or wanted == own:
        return own
    if wanted > own or (cuts is not None and wanted not in cuts):
        fewer = (
            f"{', '.join(map(str, sorted(cuts)))} or {own}"
            if cuts
            else f"1 to {own}"
            if cuts is None
            else f"{own} alone: it does not say that it was trained to be cut short (--matryoshka says it)"
        )
        raise BadRequest(
            f"'dimensions' is {wanted}; this model's embeddings have {fewer}", param="dimensions", code="invalid_value"
        )
    return wanted


def shortened(data: bytes, size: int) -> bytes:
    """The first values of an embedding, as one of length 1; the embedding itself where it has no more."""
    if len(data) == 4 * size:
        return data
    kept = np.frombuffer(data, "<f4")[:size].astype(np.float64)
    return (kept / max(float(np.linalg.norm(kept)), 1e-12)).astype("<f4").tobytes()


async def _visuals(inputs: Sequence[EmbeddingInput], services: Services) -> list[list[U8 | Clip]]:
    """Of each input, its pictures and videos."""
    parts = [visual_parts(one.messages) if isinstance(one, ConversationInput) else [] for one in inputs]
    rest = iter(await load_visuals([part for of_one in parts for part in of_one], services))
    return [[next(rest) for _ in of_one] for of_one in parts]


async def _all(
    inputs: Sequence[EmbeddingInput],
    visuals: Sequence[list[U8 | Clip]],
    asked: _Asked,
    log: RequestLog,
    services: Services,
) -> list[bytes]:
    """In the order of the inputs. The first that fails ends the others."""
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def one(index: int) -> bytes:
        async with gate:
            loop, encode = asyncio.get_running_loop(), services.embedder.encode
            made = await loop.run_in_executor(
                services.threads, encode, inputs[index], visuals[index], asked.context, asked.truncation
            )
            log.usage.prompt_tokens += made.tokens
            log.usage.image_tokens += made.image_tokens
            return await _embedded(made, asked, log, services)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(index)) for index in range(len(inputs))]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def _embedded(made: EmbeddingPrompt, asked: _Asked, log: RequestLog, services: Services) -> bytes:
    prompt = made.prompt
    message = Submit(
        request_id=f"embd-{secrets.token_hex(16)}",
        sampling=GREEDY,
        max_tokens=1,
        eos=(),
        delta=prompt.delta,
        axes=len(prompt.positions),
        spans=prompt.spans,
        items=describe(prompt.items),
        visible=visible_images(prompt.visible),
        adapter=None if asked.adapter is None else asked.adapter.ref,
        priority=asked.priority,
        pooling=services.embedder.facts.pooling,
    )
    (stream,) = services.engine.submit_choices(message, arrays_of(prompt.ids, prompt.positions, prompt.items))
    last: Output | None = None
    try:
        async for output in stream:
            last = output
            log.usage.cached_tokens += output.cached_tokens
            if asked.use is not None:
                asked.use.start(output)
                asked.use = None
    finally:
        stream.cancel()
    if last is None or len(last.embedding) != 4 * services.embedder.facts.dimensions:
        raise EngineFailed("the engine gave no embedding")
    _note(last, log, services)
    return last.embedding


def _note(output: Output, log: RequestLog, services: Services) -> None:
    """The longest wait counts for the request's line."""
    services.metrics.queue.observe(output.queue_seconds)
    log.usage.queue_seconds = max(log.usage.queue_seconds or 0.0, output.queue_seconds)
    log.usage.finish = "stop"
