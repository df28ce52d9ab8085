"""POST /v1/chat/completions: a conversation with pictures in, an answer out, whole or as a stream."""

from __future__ import annotations

from contextlib import AsyncExitStack

from fastapi import APIRouter, Request
from starlette.responses import Response

from opsin_server.adapters.catalogue import ServedAdapter
from opsin_server.api.admission import Admission
from opsin_server.api.answer.event_stream import EventStream
from opsin_server.api.answer.submit import submit
from opsin_server.api.cancellation import CancelScope
from opsin_server.api.middleware.request_log import RequestLog
from opsin_server.api.routes.read_body import ChatBody, DeploymentBody
from opsin_server.api.schemas.chat_request import ChatRequest
from opsin_server.api.schemas.chat_response import encode
from opsin_server.api.services import RequestLogDep, Services, ServicesDep

router = APIRouter()


@router.post("/v1/chat/completions")
@router.post("/chat/completions")
async def chat(body: ChatBody, request: Request, log: RequestLogDep, services: ServicesDep) -> Response:
    return await answer(body, request, log, services)


@router.post("/deployments/{name:path}/chat/completions")
async def chat_with_deployment(
    body: DeploymentBody, request: Request, log: RequestLogDep, services: ServicesDep
) -> Response:
    """Azure's address for it, below /openai (which `middleware.paths` takes away)."""
    return await answer(body, request, log, services)


async def answer(body: ChatRequest, request: Request, log: RequestLog, services: Services) -> Response:
    """What is held (a place among the requests in flight, the engine's work) is given back when the answer has ended,
    which for a stream is after this function."""
    adapter = await services.adapters.resolve(body.model)
    async with AsyncExitStack() as held:
        cancellation = admitted(services.admission, held)
        async with cancellation.attended(request.receive):
            generation = await submit(body, adapter, log, services, held)
            if not body.stream:
                content = encode(await generation.completion())
                return Response(content, media_type="application/json", headers=version_headers(adapter))
        return EventStream(
            generation,
            cancellation,
            held.pop_all(),
            body.wants_usage,
            body.wants_usage_in_every_chunk,
            version_headers(adapter),
        )


def version_headers(adapter: ServedAdapter | None) -> dict[str, str]:
    """Which version answers; none for the base model."""
    if adapter is None:
        return {}
    label = adapter.label.encode("ascii", "backslashreplace").decode()
    return {"x-opsin-adapter-version": label, "x-opsin-adapter-digest": f"sha256:{adapter.digest}"}


def admitted(admission: Admission, held: AsyncExitStack, drained: bool = True) -> CancelScope:
    """A place among the requests in flight. drained: see `Admission.admit`. Raises Unavailable."""
    cancellation = admission.admit(drained)
    held.callback(admission.release, cancellation)
    return cancellation
