"""POST /v1/completions: texts or ids in, what follows them out, whole or as a stream."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from opsin_server.api.answer.completion_events import CompletionStream, completion
from opsin_server.api.answer.submit_completion import echoes, submit_completion
from opsin_server.api.middleware.request_log import RequestLog
from opsin_server.api.routes.chat import admitted, version_headers
from opsin_server.api.routes.read_body import open_body, parse
from opsin_server.api.schemas.chat_response import encode
from opsin_server.api.schemas.completion_request import CompletionRequest, DeploymentCompletionRequest
from opsin_server.api.services import RequestLogDep, Services, ServicesDep

router = APIRouter()


async def _body(request: Request) -> CompletionRequest:
    return parse(CompletionRequest, await open_body(request))


async def _deployment_body(request: Request) -> CompletionRequest:
    """With the model that the address names."""
    body = parse(DeploymentCompletionRequest, await open_body(request))
    return body.model_copy(update={"model": request.path_params["name"]})


CompletionBody = Annotated[CompletionRequest, Depends(_body)]
DeploymentBody = Annotated[CompletionRequest, Depends(_deployment_body)]


@router.post("/v1/completions")
@router.post("/completions")
async def complete(body: CompletionBody, request: Request, log: RequestLogDep, services: ServicesDep) -> Response:
    return await answer(body, request, log, services)


@router.post("/deployments/{name:path}/completions")
async def complete_with_deployment(
    body: DeploymentBody, request: Request, log: RequestLogDep, services: ServicesDep
) -> Response:
    """Azure's address for it, below /openai (which `middleware.paths` takes away)."""
    return await answer(body, request, log, services)


async def answer(body: CompletionRequest, request: Request, log: RequestLog, services: Services) -> Response:
    """One place among the requests in flight, however many prompts it has."""
    adapter = await services.adapters.resolve(body.model)
    async with AsyncExitStack() as held:
        cancellation = admitted(services.admission, held)
        async with cancellation.attended(request.receive):
            generation = await submit_completion(body, adapter, log, services, held)
            begun = echoes(body, services)
            if not body.stream:
                content = encode(await completion(generation, begun, body, services))
                return Response(content, media_type="application/json", headers=version_headers(adapter))
        return CompletionStream(
            generation,
            cancellation,
            held.pop_all(),
            begun,
            body.logprobs is not None,
            body.wants_usage,
            body.wants_usage_in_every_chunk,
            version_headers(adapter),
        )
