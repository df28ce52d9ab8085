"""POST /v1/embeddings: texts and pictures in, a vector for each out."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from opsin_server.api.answer.embed import embed
from opsin_server.api.middleware.request_log import RequestLog
from opsin_server.api.routes.chat import admitted, version_headers
from opsin_server.api.routes.read_body import open_body, parse
from opsin_server.api.schemas.embedding_request import SEPARATORS, DeploymentEmbeddingRequest, EmbeddingRequest
from opsin_server.api.services import RequestLogDep, Services, ServicesDep

router = APIRouter()


async def _body(request: Request) -> EmbeddingRequest:
    return parse(EmbeddingRequest, await open_body(request), SEPARATORS)


async def _deployment_body(request: Request) -> EmbeddingRequest:
    """With the model that the address names."""
    body = parse(DeploymentEmbeddingRequest, await open_body(request), SEPARATORS)
    return body.model_copy(update={"model": request.path_params["name"]})


Body = Annotated[EmbeddingRequest, Depends(_body)]
DeploymentBody = Annotated[EmbeddingRequest, Depends(_deployment_body)]


@router.post("/v1/embeddings")
@router.post("/embeddings")
async def embeddings(body: Body, request: Request, log: RequestLogDep, services: ServicesDep) -> Response:
    return await answer(body, request, log, services)


@router.post("/deployments/{name:path}/embeddings")
async def embeddings_of_deployment(
    body: DeploymentBody, request: Request, log: RequestLogDep, services: ServicesDep
) -> Response:
    """Azure's address for it, below /openai (which `middleware.paths` takes away)."""
    return await answer(body, request, log, services)


async def answer(body: EmbeddingRequest, request: Request, log: RequestLog, services: Services) -> Response:
    adapter = await services.adapters.resolve(body.model)
    async with AsyncExitStack() as held:
        cancellation = admitted(services.admission, held)
        async with cancellation.attended(request.receive):
            content = await embed(body, adapter, log, services, held)
    return Response(content, media_type="application/json", headers=version_headers(adapter))
