"""A body answered as its route would answer it, without HTTP: how the lines of batches are run. They have the checks of
the route, and the time that its own requests leave: no place among the requests in flight, the least priority in the
engine, a thread of their own, and no part in the measurements of how long clients wait."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, cast

import msgspec

from opsin_server.api.answer.begin_response import begin_response
from opsin_server.api.answer.completion_events import completion
from opsin_server.api.answer.embed import embed
from opsin_server.api.answer.submit import submit
from opsin_server.api.answer.submit_completion import echoes, submit_completion
from opsin_server.api.engine_status import Engine, TokenStream
from opsin_server.api.middleware import error_responses
from opsin_server.api.middleware.request_log import RequestLog
from opsin_server.api.routes.read_body import parse
from opsin_server.api.schemas.batches import ENDPOINTS
from opsin_server.api.schemas.chat_request import ChatRequest
from opsin_server.api.schemas.chat_response import encode
from opsin_server.api.schemas.completion_request import CompletionRequest
from opsin_server.api.schemas.embedding_request import SEPARATORS, EmbeddingRequest
from opsin_server.api.schemas.responses import ResponsesRequest
from opsin_server.api.schemas.sampling_fields import SamplingFields
from opsin_server.api.services import Services
from opsin_server.batches.answers import Answer
from opsin_server.errors import BadRequest, EngineFailed, StorageFailed, Unavailable
from opsin_server.ipc.messages import BACKGROUND, Arrays, Output, Submit
from opsin_server.metrics import Metrics


async def chat(body: bytes, log: RequestLog, services: Services) -> bytes:
    request = parse(ChatRequest, body)
    _check_whole(request)
    adapter = await services.adapters.resolve(request.model)
    async with AsyncExitStack() as held:
        generation = await submit(request, adapter, log, services, held)
        return encode(await generation.completion())


async def responses(body: bytes, log: RequestLog, services: Services) -> bytes:
    request = parse(ResponsesRequest, body)
    _check_whole(request)
    model = request.model or services.names[0]
    adapter = await services.adapters.resolve(model)
    async with AsyncExitStack() as held:
        return encode(await (await begin_response(request, model, adapter, log, services, held)).whole())


async def completions(body: bytes, log: RequestLog, services: Services) -> bytes:
    request = parse(CompletionRequest, body)
    _check_whole(request)
    adapter = await services.adapters.resolve(request.model)
    async with AsyncExitStack() as held:
        generation = await submit_completion(request, adapter, log, services, held)
        begun = echoes(request, services)
        return encode(await completion(generation, begun, request, services))


def _check_whole(request: SamplingFields | ResponsesRequest) -> None:
    if request.stream:
        raise BadRequest("'stream' must be false or left out: a batch has whole answers", param="stream")


async def embeddings(body: bytes, log: RequestLog, services: Services) -> bytes:
    request = parse(EmbeddingRequest, body, SEPARATORS)
    adapter = await services.adapters.resolve(request.model)
    async with AsyncExitStack() as held:
        return await embed(request, adapter, log, services, held)


Answering = Callable[[bytes, RequestLog, Services], Awaitable[bytes]]
ANSWERING: dict[str, Answering] = dict(zip(ENDPOINTS, (chat, responses, completions, embeddings), strict=True))


class BackgroundAnswers:
    """Answers lines of batches, as `batches.answers.Answerer` says."""

    def __init__(self, services: Services) -> None:
        self._published = services.metrics
        unpublished = Metrics()
        unpublished.adapters = services.metrics.adapters
        threads = services.background_threads  # (pictures, too, wait behind no chat's, and keep none waiting)
        self._services = replace(services, metrics=unpublished, threads=threads, image_threads=threads)

    async def __call__(self, endpoint: str, body: bytes, started: Callable[[], None]) -> Answer:
        log = RequestLog(f"req_{secrets.token_hex(12)}", "POST")
        services = replace(self._services, engine=cast("Engine", _Background(self._services.engine, started)))
        status = 200
        try:
            content = await ANSWERING[endpoint](body, log, services)
        except (Unavailable, StorageFailed, EngineFailed):
            raise
        except Exception as failure:
            error = error_responses.known_error(failure, {"opsin.request": log})
            status, content = error.status, msgspec.json.encode(error_responses.body(error))
        usage, metrics = log.usage, self._published
        metrics.prompt_tokens.inc(usage.prompt_tokens)
        metrics.image_tokens.inc(usage.image_tokens)
        metrics.generation_tokens.inc(usage.completion_tokens)
        return Answer(status, log.id, content, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)


class _Background:
    """The engine, for what comes behind all others."""

    def __init__(self, engine: Engine, started: Callable[[], None]) -> None:
        self._engine, self._started = engine, started

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit_choices(self, message: Submit, arrays: Arrays) -> list[TokenStream]:
        behind = msgspec.structs.replace(message, priority=BACKGROUND + message.priority)
        return [_Noted(stream, self._started) for stream in self._engine.submit_choices(behind, arrays)]


class _Noted:
    """A stream; started: told of its first output."""

    def __init__(self, stream: TokenStream, started: Callable[[], None]) -> None:
        self._stream, self._started, self.cancel = stream, started, stream.cancel

    async def __aiter__(self) -> AsyncIterator[Output]:
        async for output in self._stream:
            self._started()
            yield output
